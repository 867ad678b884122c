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
from longspan_kernels.block_sparse.args import Call, entry_details, has_bits, stepped
from longspan_kernels.block_sparse.cache import PatternRecipe, layout_for
from longspan_kernels.block_sparse.planner import Tiling, compile_layout, dense
from longspan_kernels.block_sparse.rules import And, Band, Congruent, Everything, Or
from longspan_kernels.block_sparse.triton import other_lengths, schedule
from longspan_kernels.block_sparse.triton.any_length import by_kernels_there_are
from longspan_kernels.block_sparse.triton.backward_order import steady
from longspan_kernels.block_sparse.triton.other_lengths import NONE, QUERIES, _at_length
from longspan_kernels.block_sparse.triton.schedule import work_of
from longspan_kernels.block_sparse.triton.tuning import lines_of
from longspan_kernels.launch import launcher as launching

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
    """By the keys of compiled kernels, of real launches that are recorded and not run; by those for any length, where a length
    was not planned."""
    pytest.importorskip("triton")
    script = Path(__file__).parents[1] / "shared" / "kernels_of_lengths.py"
    settings = {**os.environ, "TRITON_INTERPRET": "0"}
    call = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=settings, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 57  # patterns, kinds of call for each
    assert not [line for line in lines if not line.endswith("general:")]  # kernels missed stand behind
    assert all(int(line.split(" kernels,")[0].split()[-1]) > 7 for line in lines[:-1])
    assert lines[-1].startswith("choices 2 kernels")
    by_general = [int(line.split()[-4]) for line in lines if line[:7] not in ("choices", "lists o") and "Predicate" not in line]
    assert len(by_general) > 40 and sum(by_general) <= 3  # of 10 lengths each, those that were planned for: they are slower


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
        return launching.Plan(kernel, 1, {"size": size}, launching.Launch(4, 4))

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
    monkeypatch.setattr(other_lengths, "_known", {})
    monkeypatch.setattr(other_lengths, "_on_host", lru_cache(lambda *args: 1 // 0))

    def run(q, layout):
        assert q.device.type == "meta"

    q = torch.empty(1, 2, 64, 16)
    layout = layout_for(Local(8).key, 64, 64, 2, False, Tiling(64, 64, sizes=(64,)), q.device)
    call = Call(q, q, q, layout, 1.0, None, None, None, None, 0.0, None, None, 0)
    with pytest.warns(UserWarning, match="kernels for other lengths are not compiled ahead: ZeroDivisionError"):
        other_lengths.compile_for_other_lengths(run, call, {"layout": layout}, {"q": (q, 2, QUERIES)}, {})


def recipe_of(pattern):
    return layout_for(pattern.key, 64, 64, 2, False, Tiling(64, 64, sizes=(64,)), torch.device("cpu")).recipe


def test_what_is_known_of_a_pattern_at_other_lengths():
    assert not recipe_of(Predicate(lambda b, h, i, j: i >= j) & Local(8)).foreseen
    assert recipe_of(Local(8) | Strided(100)).foreseen
    assert recipe_of(Local(8) | Strided(100) | BigBird(32, 3, 1, 1)).periods == {100, 32}
    assert recipe_of(Longformer(8, (0, 500, 501))).ends == {1, 502}
    table = recipe_of(BlockTable(torch.ones(2, 2, dtype=torch.bool), 32))
    assert table.on_host(128, 128) is None  # it ends at 64
    assert table.on_host(50, 50) is not None


def test_which_forms_general_kernels_have():
    natural, listed = (64, 64, "bits"), (64, 64, "gathered")
    assert recipe_of(Local(8)).forms == [natural]
    assert recipe_of(Predicate(lambda b, h, i, j: i >= j)).forms == [natural, (64, 64, "middle"), (64, 64, "long")]
    assert recipe_of(Longformer(8, (500,))).forms == [natural, listed]  # beyond the length of the call
    assert recipe_of(Strided(100)).forms == [natural, listed]
    small = PatternRecipe(Strided(100).key, 2, False, Tiling(32, 32, sizes=(64,)))
    assert small.forms == [(32, 32, "bits"), (32, 32, "gathered"), (64, 64, "gathered")]
    assert PatternRecipe(Strided(100).key, 2, False, Tiling(32, 32, one_pass=True)).forms == [(32, 32, "bits")]


@pytest.fixture
def deterministic(request):
    """Torch's setting: "no", "warn" or "yes"."""
    torch.use_deterministic_algorithms(request.param != "no", warn_only=request.param == "warn")
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", ["no", "warn", "yes"], indirect=True)
@pytest.mark.parametrize("known", [True, False])
def test_general_kernels_serve_only_where_they_are_known_and_bits_may_differ(known, deterministic):
    """A layout is asked once for each kind of call, and keeps the answer."""
    layout = layout_for(Local(8).key, 64, 64, 2, False, Tiling(64, 64, sizes=(64,)), torch.device("cpu"))
    layout.general_for.clear()
    asked, ran = [], []

    def others_known():
        asked.append(1)
        return known

    def interrupted():
        raise KeyboardInterrupt

    def run(found):
        ran.append((bool(found["layout"].components[0].general), launching._here.only_compiled))
        if launching._here.only_compiled:
            raise launching.NotCompiled
        return 5

    with pytest.raises(KeyboardInterrupt):  # which leaves no answer behind
        by_kernels_there_are({"layout": layout}, ("forward",), interrupted, run)
    for _ in range(2):
        assert by_kernels_there_are({"layout": layout}, ("forward",), others_known, run) == 5
    assert len(asked) == 1 and not launching._here.only_compiled
    general = known and deterministic != "yes"
    assert ran == ([(False, True), (True, False), (True, False)] if general else [(False, False)] * 2)


def test_a_pattern_that_comes_first_compiles_what_it_lacks(monkeypatch):
    """Another table of a known kind may be of other lines; at another length it takes what there is."""
    monkeypatch.setattr(launching, "compiles_ahead", lambda x: True)
    monkeypatch.setattr(launching, "compile_all", lambda wanted, device: None)
    monkeypatch.setattr(other_lengths, "_known", {})
    monkeypatch.setattr(other_lengths, "_others", lambda *args: iter(()))

    def known(seed, length):
        pattern = BigBird(16, 3, 1, 1, seed=seed)
        layout = layout_for(pattern.key, length, length, 2, False, Tiling(64, 64, sizes=(64,)), torch.device("cpu"))
        q = torch.empty(1, 2, length, 16)
        call = Call(q, q, q, layout, 1.0, None, None, None, None, 0.0, None, None, 0)
        return other_lengths.compile_for_other_lengths(len, call, {"layout": layout}, {"q": (q, 2, QUERIES)}, {})

    assert [known(1, 64), known(2, 64), known(1, 64), known(2, 100), known(1, 100)] == [False, False, True, True, True]


def test_which_lengths_are_planned_together():
    def regimes(q_len, k_len):
        found = list(other_lengths._lengths(q_len, k_len, {64}, {500}))
        assert len(set(found)) == len(found) and [k for _, k in found] == sorted(k for _, k in found)
        return {other_lengths._regime(*lengths) for lengths in found}, {round(4 * q / k) for q, k in found if k > 2000}

    assert regimes(300, 300) == ({"equal"}, {4})
    assert regimes(10, 300) == ({"few"}, {0})
    assert regimes(200, 300) == ({"unequal"}, {2, 3, 6})
    assert regimes(900, 300) == ({"unequal"}, {2, 6, 12})
    assert (1, 4096) in set(other_lengths._lengths(10, 300, set(), set()))
    assert max(other_lengths._lengths(300, 300, {1 << 30}, {500, 10**9})) == (65536, 65536)


def test_a_length_that_a_pattern_does_not_know_is_left_out():
    class Short(Local):
        def rule(self, q_len, k_len, heads, causal, device):
            if k_len > 100:
                raise ValueError("too long")
            return super().rule(q_len, k_len, heads, causal, device)

    recipe = PatternRecipe(Short(8).key, 2, False, Tiling(64, 64, sizes=(64,)))
    assert recipe.on_host(101, 101) is None
    assert recipe.on_host(100, 100).k_len == 100
