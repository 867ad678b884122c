"""Sketches: the shares of a pattern's cells, and a run's record that holds them."""

import math

import pytest
import torch
from tiny_run import TinyData, TinyTask, tiny_trainer

from longspan.patterns import BigBird, Full, Local, PerHead
from longspan.records import RecordWriter
from longspan.training.callbacks.pattern_sketch import LONGEST, PatternSketch, sketch


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "pattern", [Local(12), BigBird(8, 3, 1, 2, 0), PerHead([Full(), Local(4)]), Local(9) | Local(3, dilation=5)]
)
def test_shades_are_the_mask_s_shares(pattern, causal):
    length, heads, cells = 50, 2, 16
    rows = sketch(pattern, length, heads, causal, cells)
    mask = pattern.mask(length, heads=heads, causal=causal).float().mean(0)
    assert len(rows) == 13  # cells of 4 tokens, the last of 2
    for query, row in enumerate(rows):
        for key, shade in enumerate(row):
            part = mask[4 * query : 4 * query + 4, 4 * key : 4 * key + 4]
            assert int(shade, 16) == math.ceil(15 * math.sqrt(part.mean().item()) - 1e-4)


def test_one_live_pair_is_not_lost():
    rows = sketch(Local(1), 64 * 32, 1, True)
    assert all(rows[i][i] != "0" for i in range(64))


def test_a_sequence_too_long_is_left_out():
    assert sketch(Full(), LONGEST + 1, 1, False) == []


class Backbone(torch.nn.Linear):
    max_length = 64

    class _Attention:
        heads, causal = 2, True

        def __init__(self, pattern):
            self.pattern = pattern

    def attention_modules(self):
        return [self._Attention(pattern) for pattern in (Local(8), Full(), Local(8), None)]


def test_the_record_holds_each_distinct_pattern_once(tmp_path):
    task = TinyTask()
    task.model.backbone = Backbone(1, 1)
    with RecordWriter(tmp_path / "record.json") as record:
        tiny_trainer(tmp_path, [record, PatternSketch(cells=16)], max_steps=2).fit(task, TinyData())
    held = record.record.extra["pattern"]
    assert [one["layers"] for one in held] == [[0, 2], [1]]
    assert held[1]["rows"][15] == "f" * 15 + "c", "causal: half of the cells on the diagonal"
    assert all(one["length"] == 64 and one["causal"] for one in held)


def test_a_model_without_patterns_leaves_nothing(tmp_path):
    with RecordWriter(tmp_path / "record.json") as record:
        tiny_trainer(tmp_path, [record, PatternSketch()], max_steps=2).fit(TinyTask(), TinyData())
    assert record.record.extra == {}
