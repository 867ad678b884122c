"""A new length compiles nothing: most of what kernels are compiled for follows the pattern, and the rest is compiled ahead."""

import os
import subprocess
import sys
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.patterns import BigBird, BlockTable, Fixed, Full, Local, Longformer, Predicate, Strided
from longspan_kernels.block_sparse import launching, other_lengths, schedule
from longspan_kernels.block_sparse.arguments import Call, entry_details, has_bits, stepped
from longspan_kernels.block_sparse.backward_order import steady
from longspan_kernels.block_sparse.other_lengths import NONE, QUERIES, _at_length
from longspan_kernels.block_sparse.planner import Tiling, compile_layout, dense
from longspan_kernels.block_sparse.resolve import PatternRecipe, layout_for
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


def test_dense_is_said_of_rules_that_leave_out_one_side_at_most():
    for rule in (Everything(), Band(0, None), And(Everything(), Band(None, 5)), And(Band(0, None), Band(3, None))):
        assert dense(rule)
    for rule in (Band(0, 5), And(Band(0, None), Band(None, 5)), Or(Everything(), Band(0, 5)), And(Everything(), Congruent(4))):
        assert not dense(rule)


def test_what_a_step_launches_was_compiled_with_the_first_at_another_length():
    """By the keys of compiled kernels, of real launches that are recorded and not run."""
    pytest.importorskip("triton")
    script = Path(__file__).parents[1] / "shared" / "kernels_of_lengths.py"
    settings = {**os.environ, "TRITON_INTERPRET": "0"}
    call = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=settings, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 15 * 3  # patterns, kinds of call for each
    assert not [line for line in lines if not line.endswith(":")]
    assert all(int(line.split()[-2]) > 3 for line in lines)  # kernels


def made(shape, order, gap=0):
    """A tensor whose dimensions lie in memory in an order, `gap` numbers between one row of the innermost and the next."""
    full = [shape[dim] for dim in order]
    full[-1] += gap
    return torch.empty(full)[..., : full[-1] - gap].permute([order.index(dim) for dim in range(len(shape))])


@given(
    order=st.permutations((0, 1, 2)), length=st.integers(1, 9), there=st.integers(1, 9), batch=st.integers(1, 3),
    heads=st.integers(1, 3), gap=st.sampled_from((0, 8)),
)  # fmt: skip
def test_a_tensor_at_another_length_has_the_strides_it_is_made_with(order, length, there, batch, heads, gap):
    here, wanted = (made((batch, heads, n, 16), (*order, 3), gap) for n in (length, there))
    found = _at_length(here, 2, QUERIES, (length, 0), (there, 0))
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    # Where a dimension is one long, its stride says nothing.
    if length > 1:
        for dim, size in enumerate((batch, heads, there, 16)):
            assert size == 1 or found.stride(dim) == wanted.stride(dim)


def test_what_has_no_tokens_or_is_spread_over_them_stays():
    lengths, spread = torch.ones(3, dtype=torch.int32), torch.ones(1).expand(2, 4, 50, 16)
    assert _at_length(lengths, 0, NONE, (50, 50), (90, 90)).shape == (3,)
    assert _at_length(spread, 2, QUERIES, (50, 50), (90, 90)).stride() == (0, 0, 0, 0)
    assert _at_length(None, 2, QUERIES, (50, 50), (90, 90)) is None


class Compiler:
    """In the place of a kernel under triton.jit: takes so much shared memory a stage, or fails. Counts what is made ready."""

    __name__ = "kernel"
    arg_names = ("X", "size")
    params = ()

    def __init__(self, shared=100, error=None):
        self.shared, self.error, self.asked, self.ready = shared, error, [], []

    def warmup(self, *tensors, grid, num_stages, **options):
        self.asked.append(num_stages)
        if self.error is not None:
            raise self.error
        return Compiled(self, num_stages)


class Compiled:
    def __init__(self, kernel, stages):
        self.kernel, self.stages, self.metadata = kernel, stages, SimpleNamespace(shared=kernel.shared * stages)

    @property
    def run(self):
        """As Triton's: the first look loads the kernel, and fails where it does not fit."""
        if self.metadata.shared > 250:
            raise RuntimeError("out of resource: shared memory")
        self.kernel.ready.append(self.stages)


class Value:
    is_constexpr = True

    def __init__(self, name):
        self.name = name


@pytest.fixture
def planned(monkeypatch):
    """A maker of plans for a stand-in of a kernel, on a device with 250 bytes of shared memory."""
    pytest.importorskip("triton")
    monkeypatch.setattr(launching, "_ahead", {})
    monkeypatch.setattr(launching, "_stages", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(launching, "shared_memory_of", lambda device: 250)

    def plan(kernel, size=1):
        kernel.params = (Value("X"), Value("size"))
        return launching.Plan(kernel, 1, {"size": size}, launching.Launch(4, 4), True)

    return plan


def test_what_is_planned_is_compiled_once_and_not_launched(planned):
    kernel, x = Compiler(), torch.empty(1, device="meta")
    for _ in range(2):
        with launching.only_compiling(torch.device("cuda")):
            for size in (1, 2, 1):
                planned(kernel, size)(x)
            assert kernel.asked in ([], [4, 4, 3, 3, 2, 2])  # at the end; with ever fewer stages, until they fit
    assert kernel.asked == [4, 4, 3, 3, 2, 2]
    assert kernel.ready == [2, 2]
    assert list(launching._stages.values()) == [2]  # and launches take as many


def test_a_kernel_that_does_not_compile_ahead_is_a_warning(planned):
    kernel = Compiler(error=RuntimeError("no such instruction"))
    said = "kernel cannot be compiled ahead for other lengths: no such instruction"
    with pytest.warns(UserWarning, match=said), launching.only_compiling(torch.device("cuda")):
        planned(kernel)(torch.empty(1, device="meta"))


def test_a_pattern_that_cannot_be_planned_is_a_warning(monkeypatch):
    monkeypatch.setattr(launching, "compiles_ahead", lambda x: True)
    monkeypatch.setattr(launching, "compile_all", lambda wanted, device: None)
    monkeypatch.setattr(other_lengths, "_known", set())
    monkeypatch.setattr(other_lengths, "_on_host", lru_cache(lambda *args: 1 // 0))
    q = torch.empty(1, 2, 64, 16)
    layout = layout_for(Local(8).key, 64, 64, 2, False, Tiling(64, 64, sizes=(64,)), q.device)
    call = Call(q, q, q, layout, 1.0, None, None, None, None, 0.0, None, None, 0)
    with pytest.warns(UserWarning, match="kernels for other lengths are not compiled ahead: ZeroDivisionError"):
        other_lengths.compile_for_other_lengths(len, call, {"layout": layout}, {"q": (q, 2, QUERIES)}, {})


def test_patterns_that_ask_a_function_are_not_planned_for_lengths_nobody_asked_for():
    def recipe(pattern):
        layout = layout_for(pattern.key, 64, 64, 2, False, Tiling(64, 64, sizes=(64,)), torch.device("cpu"))
        return layout.recipe

    assert not recipe(Predicate(lambda b, h, i, j: i >= j) & Local(8)).foreseen
    assert recipe(Local(8) | Strided(100)).foreseen
    assert recipe(Local(8) | Strided(100) | BigBird(32, 3, 1, 1)).periods == {100, 32}
    assert recipe(Longformer(8, (0, 500, 501))).ends == {1, 502}
    table = recipe(BlockTable(torch.ones(2, 2, dtype=torch.bool), 32))
    assert table.on_host(128, 128) is None  # it ends at 64
    assert table.on_host(50, 50) is not None


def test_a_length_that_a_pattern_does_not_know_is_left_out():
    class Short(Local):
        def rule(self, q_len, k_len, heads, causal, device):
            if k_len > 100:
                raise ValueError("too long")
            return super().rule(q_len, k_len, heads, causal, device)

    recipe = PatternRecipe(Short(8).key, 2, False, Tiling(64, 64, sizes=(64,)))
    assert recipe.on_host(101, 101) is None
    assert recipe.on_host(100, 100).k_len == 100
