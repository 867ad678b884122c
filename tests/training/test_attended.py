"""What content-based attention attended to: kept in the record of a run, drawn head by head."""

import io

import pytest
import torch
from chosen_by_content import PLACE, draw

import longspan.attention as variants
from longspan.records import Record
from longspan.training.attended import Attended, attended_figure
from longspan.training.pattern_sketch import shades

SMALL = ["model.layers=2", "model.width=32", "model.heads=2", "data.max_length=128", "data.batch_size=2", "logger=none"]


def test_the_record_of_a_run_holds_what_was_attended_to(tmp_path, train):
    settings = ["attention.block_size=16", "attention.top_k=2"]
    train(tmp_path, "attention=moba", *settings, "experiment=demo", *SMALL, "trainer=debug", "data.max_validation_windows=4")
    held = Record.load(tmp_path).extra["pattern"]
    assert [one["layers"] for one in held] == [[0], [1]]
    for one in held:
        assert one["causal"] and 1 < one["length"] <= 128 and len(one["rows"]) <= 64
        assert all(set(row[query + 1 :]) <= {"0"} and row[query] != "0" for query, row in enumerate(one["rows"]))


def test_the_last_sequence_heard_is_mapped():
    module = variants.moba(block_size=16, top_k=2, **PLACE).eval()
    q, k, v = (x.detach().float() for x in draw(64))
    attended = Attended()
    attended.listen([torch.nn.Identity(), module])
    module(q, k, v, lengths=torch.tensor([40, 64]))
    attended.stop()
    module(q * 0, k * 0, v)  # not heard
    [(layer, live)] = attended.live_shares()
    assert layer == 1 and live.shape == (40, 40)
    expected = (module.attended(q[:1], k[:1], lengths=torch.tensor([40])) > 1e-4)[0, :, :40, :40].float().mean(0)
    torch.testing.assert_close(live, expected)
    assert attended.live_shares() == []


def test_shades_are_means_of_cells():
    live = torch.zeros(5, 5)
    live[0, 0] = live[4, 4] = 1.0
    assert shades(live, 3) == ["800", "000", "00f"]


@pytest.mark.parametrize("heads", [1, 5])
def test_a_figure_has_a_panel_a_head(heads):
    figure = attended_figure(torch.rand(heads, 20, 20), "moba")
    assert sum(axes.get_visible() for axes in figure.axes) == heads
    figure.savefig(io.BytesIO(), format="png")
