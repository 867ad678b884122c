"""Ways to launch the Triton kernels: each gives the same results, fits what it promises, and is worked out once."""

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/gpu runs the compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

from longspan.patterns import Longformer
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.reference import reference_attention
from longspan_kernels.block_sparse.rules import And, Band, Congruent, Keys, KeysPeriodic, Or
from longspan_kernels.block_sparse.triton import (
    backward,
    configs,
    forward,
    schedule,
    workspace,
)
from longspan_kernels.block_sparse.triton import call as calls
from longspan_kernels.block_sparse.triton.call import Call, streamed
from longspan_kernels.block_sparse.triton.schedule import stepped
from longspan_kernels.launch.launcher import Launch

CAUSAL = Band(0, None)
RULES = {
    "window": Band(0, 20),
    "residues": Or(Band(0, 15), And(Congruent(8), CAUSAL)),
    "bits": And(Or(KeysPeriodic(7, 2), Band(0, 3)), CAUSAL),
    "full": Band(None, None),
}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def run(layout, q_len, k_len, width, key_heads=2, **options):
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, q_len, 2, width, generator=g).transpose(1, 2)
    k, v = (torch.randn(2, key_heads, k_len, width, generator=g) for _ in range(2))
    dout = torch.randn(2, 2, q_len, width, generator=g)
    out, lse = forward.triton_forward(q, k, v, layout, Options(0.3, **options))
    return (q, k, v, dout), (out, *backward.triton_backward(dout, None, q, k, v, out, lse, layout, Options(0.3, **options))[:3])


LAUNCHES = {
    "one loop": Launch(4, 2, one_loop=True),
    "copy engine": Launch(4, 2, by_tma=True),
    "both": Launch(4, 2, one_loop=True, by_tma=True),
    "serial masks": Launch(4, 2, serial_masks=True),
    "in sums": Launch(4, 2, in_sums=True),
}


@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("q_len", "k_len", "key_heads"), [(45, 61, 1), pytest.param(64, 64, 2, marks=pytest.mark.exhaustive)])
def test_every_launch_gives_the_same(monkeypatch, launch, name, q_len, k_len, key_heads):
    monkeypatch.setattr(calls, "launch_of", lambda *_: launch)
    layout = compile_layout([((0, 1), RULES[name])], q_len, k_len, 2, Tiling(16, 16, sizes=(16,), overhead=0))
    (q, k, v, dout), got = run(layout, q_len, k_len, 16, key_heads)
    check(RULES[name], q, k, v, dout, got)


STEPS = {  # rule, and (step, run, first) of its gathered keys where they lie in equal steps
    "runs": (And(KeysPeriodic(16, 4), CAUSAL), (16, 4, 12)),
    "single keys": (And(KeysPeriodic(4, 1), CAUSAL), (4, 1, 3)),
    "runs and a window": (And(Or(KeysPeriodic(24, 8), Band(0, 20)), CAUSAL), (24, 8, 16)),
    "runs longer than a tile": (And(KeysPeriodic(64, 32), CAUSAL), None),
    "chosen keys in steps": (And(Keys([(n, n + 2) for n in range(3, 110, 10)]), CAUSAL), (10, 2, 3)),
    "chosen keys that end early": (And(Keys([(n, n + 2) for n in range(3, 90, 10)]), CAUSAL), (10, 2, 3)),
    "chosen keys that end early, of all queries": (Keys([(n, n + 2) for n in range(3, 90, 10)]), (10, 2, 3)),
    "chosen keys beyond the end": (And(Keys([(n, n + 2) for n in range(3, 300, 30)]), CAUSAL), (30, 2, 3)),
    "keys of one tile": (And(Keys([(n, n + 2) for n in range(3, 110, 20)]), CAUSAL), None),
    "uneven keys": (And(Keys([(0, 2), (50, 51), (90, 93)]), CAUSAL), None),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    ("launch", "q_len", "k_len", "key_heads"),
    [
        ("copy engine", 48, 112, 2),
        ("copy engine", 41, 105, 1),
        ("in sums", 41, 105, 1),
        pytest.param("in sums", 48, 112, 2, marks=pytest.mark.exhaustive),
    ],
)
def test_gathered_keys_in_equal_steps_are_computed(monkeypatch, launch, name, q_len, k_len, key_heads):
    rule, found = STEPS[name]
    monkeypatch.setattr(calls, "launch_of", lambda *_: LAUNCHES[launch])
    layout = compile_layout([((0, 1), rule)], q_len, k_len, 2, Tiling(16, 16, sizes=(16,), overhead=0))
    component = layout.components[0]
    assert component.order == "keys"
    steps = stepped(component)
    assert (None if steps is None else (steps.step, steps.k_run, steps.k_first)) == found
    (q, k, v, dout), got = run(layout, q_len, k_len, 16, key_heads)
    check(rule, q, k, v, dout, got)
    if steps is not None:
        place = torch.arange(len(component.k_index))
        token = steps.k_first + place // steps.k_run * steps.step + place % steps.k_run
        there = component.k_index >= 0
        assert torch.equal(token[there].int(), component.k_index[there])
        # What a place without a token computes to is past the end, or no other place's.
        assert not torch.isin(token[~there & (token < k_len)], token[there]).any()
        call = Call(q, k, v, layout, Options(1.0))
        divides = k_len % steps.step == 0
        assert streamed((k, v), component, "k", True, call)[1] == divides
        assert streamed((q, q), component, "q", True, call)[1]  # in natural order


def test_two_runs_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(schedule, "SHORTEST_SPLIT", 1)
    layout = compile_layout([((0, 1), RULES["residues"])], 64, 64, 2, Tiling(16, 16, sizes=(16,), overhead=0))
    for a, b in zip(run(layout, 64, 64, 16)[1], run(layout, 64, 64, 16)[1], strict=True):
        assert torch.equal(a, b)


def test_residue_classes_are_computed_where_their_tiles_are_regular():
    regular = compile_layout([((0,), And(Congruent(4), CAUSAL))], 122, 122, 1, Tiling(16, 16, sizes=(16,), overhead=0))
    component = regular.components[0]
    step, _, q_per, q_first, _, k_per, k_first = stepped(component)
    assert (step, q_per, q_first, k_per, k_first) == (4, 2, 0, 2, 0)
    place = torch.arange(len(component.q_index))
    tile = place // 16
    rows = tile // q_per + (tile % q_per) * 16 * step + (place % 16) * step
    assert torch.equal(torch.where(rows < 122, rows, -1).int(), component.q_index)
    packed = compile_layout([((0,), And(Congruent(16), CAUSAL))], 122, 122, 1, Tiling(16, 16, sizes=(16,), overhead=0))
    assert packed.components[0].order == "residue 16" and stepped(packed.components[0]) is None


def test_schedules_cover_every_entry_once_and_start_the_heaviest(monkeypatch):
    monkeypatch.setattr(schedule, "SHORTEST_SPLIT", 3)
    monkeypatch.setattr(schedule, "processors", lambda device: 1000)
    layout = compile_layout([((0, 1), CAUSAL)], 300, 300, 2, Tiling(16, 16))
    component = layout.components[0]
    work = schedule.work_of(component, "rows", 1, 1, True)
    begin, _, _, end, tile, owner, line, slot = work.items.unbind(1)
    assert (end - begin).max() <= 3 and (end - begin)[0] == 3
    assert torch.equal(component.rows.index[begin.long()], tile)
    for head in range(2):
        for row in range(19):
            mine = (owner == head) & (line == row)
            assert int((end - begin)[mine].sum()) == int(component.rows.count[0, row])
    cut = slot[slot >= 0]
    assert torch.equal(cut.sort().values, torch.arange(work.partials)) and int(work.splits[:, 3].sum()) == work.partials


def test_tiles_suit_width_granularity_and_bias():
    for width in (16, 24, 64, 80, 128, 256):
        for dtype in (torch.bfloat16, torch.float32):
            for capability in ((8, 0), (8, 6), (9, 0), (12, 0)):
                for tiling in configs.tilings(width, dtype, capability, 48, 32):
                    assert tiling.block_q == tiling.block_k == 16 and tiling.one_pass
                for tiling in configs.tilings(width, dtype, capability):
                    rows = 2 * tiling.block_q * max(16, 1 << (width - 1).bit_length()) * dtype.itemsize
                    assert rows <= configs.shared_memory(capability) and tiling.block_q >= 16
    with pytest.raises(configs.KernelError, match="multiple of 16"):
        configs.tilings(64, torch.bfloat16, (9, 0), None, 24)


@pytest.mark.parametrize("causal", [False, True])
def test_tiles_of_their_own_for_each_pass(monkeypatch, causal):
    """Where the table has them, for dense patterns, at any length."""
    from longspan.patterns import Fixed, Full, Local
    from longspan_kernels.block_sparse import attend, backends

    wide = {"forward": (128, 64), "backward_rows": (64, 64), "backward_columns": (64, 128)}
    table = {(kernel, 64, "wide"): Launch(8, 2, tile=tile) for kernel, tile in wide.items()}
    monkeypatch.setattr(configs, "_major", lambda device: 9)
    monkeypatch.setattr(configs, "TABLES", {9: table})
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 384, 16, generator=g).half().requires_grad_() for _ in range(3))
    layouts = backends.layouts_for(q, k, Full().key, causal, "triton", 0)
    assert [(x.components[0].block_q, x.components[0].block_k) for x in layouts] == list(wide.values())
    for pattern in (Local(16), Fixed(64, 8)):
        narrow = backends.layouts_for(q, k, pattern.key, causal, "triton", 0)  # which larger tiles might fill with waste
        assert [(x.components[0].block_q, x.components[0].block_k) for x in narrow] == [(64, 64)] * 3
    dout = torch.randn(q.shape, generator=g).half()
    found = []
    for backend in ("triton", "dense"):
        out = attend(q, k, v, Full().key, causal=causal, backend=backend)
        found.append((out, *torch.autograd.grad(out, (q, k, v), dout)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=4e-3, rtol=1e-2)


WIDE = {"causal": (CAUSAL, 45, 61, 1), "all": (Band(None, None), 64, 64, 2), "more queries": (CAUSAL, 61, 45, 2)}


@pytest.mark.parametrize("name", WIDE)
def test_wide_heads_read_lse_in_pairs_where_lines_grow(name):
    rule, q_len, k_len, key_heads = WIDE[name]
    layout = compile_layout([((0, 1), rule)], q_len, k_len, 2, Tiling(16, 16, sizes=(16,), overhead=0))
    (q, k, v, dout), got = run(layout, q_len, k_len, 80, key_heads)
    call = Call(q, k, v, *rest_of(layout))
    assert backward.in_pairs(call, layout.components)
    assert not backward.in_pairs(Call(q[..., :64], k[..., :64], v[..., :64], *rest_of(layout)), layout.components)
    check(rule, q, k, v, dout, got)
    out, lse = forward.triton_forward(q, k, v, layout, Options(0.3))
    alone = backward.triton_backward(dout, None, q, k, v, out, lse, layout, Options(0.3), sides=("rows",))[0]
    assert torch.equal(alone, got[1])


@pytest.mark.parametrize("adding", [False, True])
def test_halves_of_a_column_add_up_in_place(monkeypatch, adding):
    """The second half waits for the first; flags are down again after each launch; two runs give the same bits."""
    for name, value in (("SHORTEST_SPLIT", 1), ("HALVED", 0.0), ("IN_TWO", 100.0)):
        monkeypatch.setattr(schedule, name, value)
    monkeypatch.setattr(schedule, "processors", lambda device: 1)
    ((_, rule),) = Longformer(16, (0, 1, 2)).head_rules(120, 120, 2, False, torch.device("cpu"))
    rules = [((0, 1), Or(rule, And(Congruent(8), CAUSAL)) if adding else rule)]
    layout = compile_layout(rules, 120, 120, 2, Tiling(16, 16, sizes=(16,)))
    (q, k, v, dout), got = run(layout, 120, 120, 16, 1)
    component = layout.components[-1]
    works = [work for key, work in schedule._works.of(component).items() if key[0] == "columns"]
    assert any(work.in_two and work.flags > 0 and work.partials == 0 for work in works)
    flags = list(workspace._flags.of(component).values())
    assert flags and not any(x.any() for x in flags)
    for work in works:
        slot = work.items[:, 7]
        first, second = (slot >= 0) & (slot < work.flags), slot >= work.flags
        assert int(first.sum()) == int(second.sum()) == work.flags
        place = torch.arange(len(slot))
        assert all(place[slot == n] < place[slot == n + work.flags] for n in range(work.flags))
    check(rules[0][1], q, k, v, dout, got)
    for a, b in zip(got, run(layout, 120, 120, 16, 1)[1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("side", "q_len", "k_len"), [(16, 54, 74), (64, 150, 170)])
@pytest.mark.parametrize("rule", [RULES["full"], CAUSAL], ids=["full", "causal"])
def test_pieces_of_rows_and_columns_add_up(monkeypatch, side, q_len, k_len, rule):
    """A tile of 16 is added up by one program, one of 64 by four."""
    for name, value in (("SHORTEST_SPLIT", 1), ("SHORTEST_TO_SPLIT", 1), ("IN_TWO", 0.0), ("EVEN", 0.0)):
        monkeypatch.setattr(schedule, name, value)
    monkeypatch.setattr(schedule, "processors", lambda device: 1000)
    layout = compile_layout([((0, 1), rule)], q_len, k_len, 2, Tiling(side, side, sizes=(side,)))
    (q, k, v, dout), got = run(layout, q_len, k_len, 16, 1)
    works = {key[0]: work for c in layout.components for key, work in schedule._works.of(c).items() if work.split_rows}
    assert set(works) == {"rows", "columns"} and all(int(w.splits[:, 3].max()) > 2 for w in works.values())
    check(rule, q, k, v, dout, got)


def test_rows_go_first_where_no_column_is_cut(monkeypatch):
    q = torch.zeros(1, 2, 64, 16)
    for name, piece, first in (("window", 8, True), ("full", 8, True), ("full", 1, False)):
        monkeypatch.setattr(schedule, "SHORTEST_SPLIT", piece)
        monkeypatch.setattr(schedule, "SHORTEST_TO_SPLIT", piece)
        monkeypatch.setattr(schedule, "processors", lambda device: 1000)
        layout = compile_layout([((0, 1), RULES[name])], 64, 64, 2, Tiling(16, 16, sizes=(16,)))
        call = Call(q, q, q, *rest_of(layout))
        assert backward.rows_go_first(call, layout.components) == first


@pytest.mark.parametrize("in_sums", [False, True])
def test_a_scale_of_zero_weighs_all_keys_alike(monkeypatch, in_sums):
    monkeypatch.setattr(calls, "launch_of", lambda *_: Launch(4, 2, in_sums=in_sums))
    layout = compile_layout([((0, 1), RULES["window"])], 64, 64, 2, Tiling(16, 16, sizes=(16,)))
    g = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(1, 2, 64, 16, generator=g) for _ in range(4))
    out, lse = forward.triton_forward(q, k, v, layout, Options(0.0))
    got = (out, *backward.triton_backward(dout, None, q, k, v, out, lse, layout, Options(0.0))[:3])
    check(RULES["window"], q, k, v, dout, got, scale=0.0)


def rest_of(layout):
    return layout, Options(0.3)


def check(rule, q, k, v, dout, got, scale=0.3):
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    q_len, k_len = q.shape[2], k.shape[2]
    i = torch.arange(q_len)[:, None] + k_len - q_len
    mask = rule.live(0, i, torch.arange(k_len)[None]).expand(2, q_len, k_len)
    out, _ = reference_attention(*leaves, mask, scale=scale)
    for a, b in zip(got, (out, *torch.autograd.grad(out, leaves, dout.double())), strict=True):
        torch.testing.assert_close(a.double(), b.detach(), atol=2e-5, rtol=2e-4)
