"""What kernels are compiled for follows the pattern, not the length: kinds of lines, of masks, and whether rows are listed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longspan.patterns import BigBird, Fixed, Full, Local, Longformer, Random, Strided
from longspan_kernels.block_sparse import schedule
from longspan_kernels.block_sparse.arguments import entry_details, has_bits, stepped
from longspan_kernels.block_sparse.backward_order import steady
from longspan_kernels.block_sparse.layout import with_other_end
from longspan_kernels.block_sparse.planner import Tiling, compile_layout, dense
from longspan_kernels.block_sparse.rules import And, Band, Congruent, Everything, Or
from longspan_kernels.block_sparse.schedule import work_of
from longspan_kernels.block_sparse.tuning import lines_of

HEADS = 16


def laid_out(pattern, causal, length):
    rules = pattern.head_rules(length, length, HEADS, causal, torch.device("cpu"))
    return compile_layout(rules, length, length, HEADS, Tiling(64, 64, sizes=(64,)))


def compiled_for(pattern, causal, length):
    return kernels_of(laid_out(pattern, causal, length))


def kernels_of(layout):
    found = []
    for number, component in enumerate(layout.components):
        rows = work_of(component, "rows", 1, 1, layout.covered and component.covers)
        columns = work_of(component, "columns", 1, 1, number == 0, in_two=steady(component))
        found.append((
            component.order, lines_of(component), component.bands > 0, has_bits(component), stepped(component) is not None,
            rows.items is not None, columns.items is not None, columns.in_two, component.rows.contiguous,
            component.columns.contiguous, entry_details(component, "rows") is None, entry_details(component, "columns") is None,
        ))  # fmt: skip
    return layout.covered, found


# Lengths that 64 does not divide bring masks where there are no others: below.
@pytest.mark.parametrize(
    ("pattern", "causal", "lengths"),
    [
        (Local(512), True, (1500, 2048, 5000)), (Local(512), False, (1500, 2048, 5000)), (Full(), True, (1024, 1500, 3072)),
        (Full(), False, (1024, 2048, 3072)), (BigBird(64, 3, 3, 2), True, (1500, 2048, 5000)),
        (BigBird(64, 3, 3, 2), False, (1024, 2048, 5056)), (BigBird(128, 3, 3, 2), False, (2048, 4096, 5056)),
        (Longformer(512, range(64)), False, (1500, 2048, 5000)), (Fixed(128, 32), True, (1500, 4096, 9000)),
        (Local(128) | Strided(128), True, (6016, 8192, 12288)),
    ],
    ids=lambda x: str(x)[:40],
)  # fmt: skip
def test_another_length_is_compiled_for_the_same(monkeypatch, pattern, causal, lengths):
    monkeypatch.setattr(schedule, "processors", lambda device: 132)
    first, *others = (compiled_for(pattern, causal, length) for length in lengths)
    for other in others:
        assert other == first


@pytest.mark.parametrize(
    "pattern", [Full(), BigBird(64, 3, 3, 2), BigBird(128, 3, 3, 2), Random(4, 64)], ids=lambda x: str(x)[:40]
)
@pytest.mark.parametrize(("here", "there"), [(4096, 3000), (3000, 4096), (5000, 6016)])
def test_lengths_that_end_inside_a_tile_are_compiled_for_with_those_that_do_not(monkeypatch, pattern, here, there):
    monkeypatch.setattr(schedule, "processors", lambda device: 132)
    layout = laid_out(pattern, False, here)
    kernels_of(layout)  # what is derived of the components stays with them
    others = [with_other_end(component) for component in layout.components]
    assert kernels_of(replace(layout, components=others)) == compiled_for(pattern, False, there)


@pytest.mark.parametrize("length", [1500, 2048])
def test_patterns_with_masks_have_them_at_any_end(length):
    for pattern, causal in ((Full(), True), (Local(512), False), (BigBird(64, 3, 3, 2), True)):
        assert [with_other_end(component) for component in laid_out(pattern, causal, length).components] == [None]


def test_dense_is_said_of_rules_that_leave_out_one_side_at_most():
    for rule in (Everything(), Band(0, None), And(Everything(), Band(None, 5)), And(Band(0, None), Band(3, None))):
        assert dense(rule)
    for rule in (Band(0, 5), And(Band(0, None), Band(None, 5)), Or(Everything(), Band(0, 5)), And(Everything(), Congruent(4))):
        assert not dense(rule)


def test_what_a_step_launches_was_compiled_at_another_length():
    """By the keys of compiled kernels, of real launches that are recorded and not run."""
    pytest.importorskip("triton")
    script = Path(__file__).parents[1] / "shared" / "kernels_of_lengths.py"
    settings = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=settings, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 9 * 4 * 4  # patterns, kinds, pairs of lengths
    assert not [line for line in lines if not line.endswith(":")]
