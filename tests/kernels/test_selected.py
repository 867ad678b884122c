"""Selected attention against its dense definition: outputs and all gradients, plain torch and interpreted Triton."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.selected import queries_of_blocks, selected_attention, selected_reference

HERE = torch.cuda.is_available()
interpreted = pytest.mark.skipif(HERE, reason="a GPU is here: tests/gpu runs the compiled kernels")


def picks_of(batch, pickers, length, n, block_size, causal, generator, own):
    """Distinct drawn blocks for each query, some of them missing; its own first where asked for."""
    blocks = -(-length // block_size)
    scores = torch.rand(batch, pickers, length, blocks, generator=generator)
    mine = torch.arange(length) // block_size
    if causal:
        scores.masked_fill_(torch.arange(blocks) > mine[:, None], -1.0)
    if own:
        scores.scatter_(3, mine.view(1, 1, -1, 1).expand(batch, pickers, -1, 1), 2.0)
    best = scores.topk(min(n, blocks), -1)
    picks = torch.where(best.values < 0.1, -1, best.indices)
    return torch.nn.functional.pad(picks, (0, n - picks.shape[-1]), value=-1)


@st.composite
def calls(draw, dtypes=(torch.float64,)):
    kv_heads, share, group = draw(
        st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 2, 1), (1, 1, 16), (2, 2, 1), (1, 1, 3), (1, 2, 2)])
    )
    batch, length, width = draw(st.integers(1, 2)), draw(st.integers(1, 140)), draw(st.sampled_from([16, 20, 40]))
    size, n, causal = draw(st.sampled_from([1, 16, 24, 32, 128, 160])), draw(st.integers(1, 5)), draw(st.booleans())
    g = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    dtype = draw(st.sampled_from(dtypes))
    H = kv_heads * share * group
    q, k, v = (torch.randn(batch, h, length, width, generator=g).to(dtype) for h in (H, kv_heads, kv_heads))
    if draw(st.booleans()):
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    picks = picks_of(batch, kv_heads * share, length, n, size, causal, g, draw(st.booleans()))
    call = {"causal": causal}
    if draw(st.booleans()):
        call["lengths"] = torch.randint(0, length + 1, (batch,), generator=g)
    if draw(st.booleans()):
        call["segments"] = torch.randint(0, 2, (batch, length), generator=g).cumsum(1) // 9
    return q, k, v, picks, size, call


def check(q, k, v, picks, size, call, backend, out_tolerance, gradient_tolerance):
    """Outputs, log-sum-exp and gradients against the definition in float64, errors beside the largest value."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, lse = selected_attention(*leaves, picks, size, **call, return_lse=True, backend=backend)
    expected, expected_lse = selected_reference(*exact, picks, size, **call)
    g = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=g, dtype=torch.float64).to(q)
    dlse = torch.randn(lse.shape, generator=g, dtype=torch.float64).to(lse)
    some = expected_lse > float("-inf")
    assert (lse > float("-inf")).equal(some) and out.dtype == q.dtype
    torch.testing.assert_close(lse[some].double(), expected_lse[some], atol=out_tolerance, rtol=out_tolerance)
    torch.testing.assert_close(out.double(), expected, atol=out_tolerance, rtol=out_tolerance)
    mine = torch.autograd.grad((out * dout).sum() + (lse[some] * dlse[some]).sum(), leaves)
    theirs = torch.autograd.grad(
        (expected * dout.double()).sum() + (expected_lse[some] * dlse[some].double()).sum(), exact, materialize_grads=True
    )
    for got, want in zip(mine, theirs, strict=True):
        assert got.dtype == q.dtype
        torch.testing.assert_close(got.double(), want, atol=gradient_tolerance * (1 + want.abs().max().item()), rtol=0)


@settings(max_examples=40, deadline=None)
@given(calls())
def test_plain_torch_is_the_definition(call):
    check(*call, "blocked", 1e-10, 1e-10)


def tensors(kv_heads, share, group, batch, length, width, size, n, causal, dtype=torch.float32, lengths=False, segments=False):
    g = torch.Generator().manual_seed(length)
    q, k, v = (
        torch.randn(batch, h, length, width, generator=g).to(dtype) for h in (kv_heads * share * group, kv_heads, kv_heads)
    )
    picks, call = picks_of(batch, kv_heads * share, length, n, size, causal, g, True), {"causal": causal}
    if lengths:
        call["lengths"] = torch.tensor([length - 7, 3])[:batch]
    if segments:
        call["segments"] = (torch.arange(length) // 11).expand(batch, length)
    return q, k, v, picks, size, call


# Interpreted programs are slow: few, and small.
TRITON = [
    (1, 1, 2, 1, 37, 16, 16, 2, True),  # a group shares its picks
    (1, 1, 3, 1, 23, 20, 24, 2, False),  # no power of two anywhere
    (1, 2, 1, 2, 21, 16, 16, 2, True, torch.float32, True),  # two pickers a key head, sequences cut short
    (1, 1, 1, 1, 50, 16, 16, 2, True, torch.float16, False, True),  # documents
    (1, 1, 1, 1, 81, 16, 80, 1, True),  # a block is several tiles of keys
    (1, 1, 16, 1, 9, 16, 16, 1, True),  # a large group
    (1, 1, 1, 1, 290, 16, 128, 2, True),  # later queries see all of a block of several tiles
    (1, 1, 1, 1, 140, 16, 128, 1, False),  # and both ways all do
]


@interpreted
@pytest.mark.parametrize("case", TRITON, ids=lambda case: "-".join(map(str, case)))
def test_triton_is_the_definition(case, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tolerance = 4e-3 if torch.float16 in case else 1e-5
    check(*tensors(*case), "triton", tolerance, tolerance)


@interpreted
def test_triton_in_many_launches_and_runs_is_the_definition(monkeypatch):
    """Memory for the parts of one head at a time, and every list cut into runs that are added up."""
    from longspan_kernels.selected.triton import configs, launches

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name, value in (("LEAST_PART_BYTES", 1), ("PART_BYTES", 0), ("FORWARD_PART_BYTES", 0), ("WORK_ITEMS", 1 << 30)):
        monkeypatch.setattr(configs, name, value)
    monkeypatch.setattr(launches.Launches, "run_entries", 32)
    launches.launches_of.cache_clear()
    try:
        check(*tensors(1, 1, 2, 1, 70, 16, 16, 2, True), "triton", 1e-5, 1e-5)
        check(*tensors(1, 2, 1, 1, 70, 16, 64, 2, True), "triton", 1e-5, 1e-5)
        check(*tensors(2, 2, 2, 1, 40, 16, 16, 2, True), "triton", 1e-5, 1e-5)  # both, and several key heads
        check(*tensors(2, 1, 2, 1, 40, 16, 16, 2, True, torch.float16), "triton", 4e-3, 4e-3)
    finally:
        launches.launches_of.cache_clear()


@interpreted
@pytest.mark.exhaustive
@settings(max_examples=25, deadline=None)
@given(calls((torch.float32, torch.float32, torch.float16)))
def test_triton_is_the_definition_of_drawn_calls(call):
    tolerance = 4e-3 if call[0].dtype == torch.float16 else 1e-5
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        check(*call, "triton", tolerance, tolerance)


@interpreted
@pytest.mark.parametrize("backend", ["blocked", "triton"])
def test_dropout_falls_on_the_same_weights_everywhere(backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k, v, picks, size, call = tensors(1, 1, 2, 1, 33, 16, 16, 2, True)
    results = []
    for which in ("dense", backend):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.manual_seed(3)
        out = selected_attention(*leaves, picks, size, **call, dropout_p=0.4, backend=which)
        results.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["blocked", pytest.param("triton", marks=interpreted)])
def test_what_lies_past_the_length_does_not_matter_and_bits_repeat(backend, monkeypatch):
    if backend == "triton":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k, v, picks, size, _ = tensors(1, 1, 2, 2, 40, 16, 16, 2, True)
    lengths, results = torch.tensor([40, 19]), []
    for rubbish in (0.0, float("nan"), 3.0):
        leaves = [x.clone() for x in (q, k, v)]
        for x in leaves:
            x[1, :, 19:] = rubbish
            x.requires_grad_()
        out = selected_attention(*leaves, picks, size, causal=True, lengths=lengths, backend=backend)
        results.append((out, *torch.autograd.grad(out, leaves, torch.ones_like(out))))
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))
    assert results[0][0][1, :, 19:].abs().max() == 0
    alone = selected_attention(*(x[1:, :, :19] for x in (q, k, v)), picks[1:, :, :19], size, causal=True, backend=backend)
    torch.testing.assert_close(results[0][0][1:, :, :19], alone)


@pytest.mark.parametrize("how", ["torch", *(pytest.param(x, marks=interpreted) for x in ("sorted", "counted"))])
@pytest.mark.parametrize(("length", "n", "blocks"), [(50, 4, 4), (131, 3, 40)])
def test_lists_hold_each_pick_once_in_order(how, length, n, blocks, monkeypatch):
    if how != "torch":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        small = {"MOST_COUNTS": 0 if how == "sorted" else 1 << 20, "CHUNK": 64, "CHUNKS": 2, "LISTS": 4, "SCANNED": 32}
        for name, value in small.items():
            monkeypatch.setattr(f"longspan_kernels.selected.triton.list_kernels.{name}", value)
    g = torch.Generator().manual_seed(0)
    picks = torch.rand(2, 3, length, blocks + 2, generator=g).argsort(-1)[..., :n].int()
    picks[:, :, ::2] = picks[:, :, ::2].masked_fill(picks[:, :, ::2] >= blocks, -1)  # others name blocks that do not exist
    lengths = torch.tensor([1 << 40, 21])  # a number above T counts as T, whatever its bits
    order, start = queries_of_blocks(picks, lengths, blocks, "torch" if how == "torch" else "triton")
    assert (order.dtype, start.dtype, start.shape) == (torch.int32, torch.int32, (6 * blocks + 1,))
    assert order.sort().values.equal(torch.arange(order.numel(), dtype=torch.int32))
    seen = 0
    for line in range(6):
        for block in range(blocks):
            entries = order[start[line * blocks + block] : start[line * blocks + block + 1]] - line * length * n
            b, p = divmod(line, 3)
            expected = (picks[b, p, : lengths[b]].flatten() == block).nonzero()[:, 0]
            assert entries.long().equal(expected)
            seen += len(entries)
    assert start[0] == 0 and start[-1] == seen


def test_operators_are_well_formed():
    q, k, v, picks, size, _ = tensors(1, 1, 2, 1, 40, 16, 16, 2, True)
    order, start = queries_of_blocks(picks.int(), None, 3)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.longspan.queries_of_blocks, (picks.int(), None, 3))
    arguments = (*leaves, picks.int(), order, start, None, None, None, size, True, 0.25, 0.0, "blocked")
    torch.library.opcheck(torch.ops.longspan.selected_forward, arguments)


def test_flops_are_those_of_the_picked_blocks():
    q, k, v, picks, size, call = tensors(1, 1, 2, 1, 40, 16, 16, 2, True)
    with FlopCounterMode(display=False) as counter:
        selected_attention(q.requires_grad_(), k, v, picks, size, **call).sum().backward()
    assert counter.get_total_flops() == (4 + 10) * 16 * 2 * 40 * 2 * 16


def test_no_queries_or_picks_give_zeros():
    q, k, v, picks, size, _ = tensors(1, 1, 2, 1, 20, 16, 16, 2, True)
    out, lse = selected_attention(q.requires_grad_(), k, v, picks[..., :0], size, return_lse=True)
    assert out.abs().max() == 0 and (lse == float("-inf")).all()
    assert torch.autograd.grad(out.sum(), q)[0].abs().max() == 0
    assert selected_attention(q[:, :, :0], k[:, :, :0], v[:, :, :0], picks[:, :, :0], size).shape == (1, 2, 0, 16)


@pytest.mark.parametrize("backend", ["dense", "blocked", pytest.param("triton", marks=interpreted)])
def test_picks_of_blocks_that_do_not_exist_are_none(backend, monkeypatch):
    if backend == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k, v, picks, size, call = tensors(1, 1, 2, 2, 40, 16, 16, 2, True)
    empty = torch.empty

    def holding_anything(*sizes, **kind):
        x = empty(*sizes, **kind)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", holding_anything)
    for odd in (3, 1000):
        given, none = picks.clone(), picks.clone()
        given[:, :, ::3, 1], none[:, :, ::3, 1] = odd, -1
        found, expected = (selected_attention(q, k, v, x, size, backend=backend, **call) for x in (given, none))
        assert found.equal(expected)


def test_wrong_calls_are_named():
    q, k, v, picks, size, _ = tensors(1, 1, 2, 1, 20, 16, 16, 2, True)
    with pytest.raises(KernelError, match=r"picks \(1, 1, 19, 2\) do not fit"):
        selected_attention(q, k, v, picks[:, :, :19], size)
    with pytest.raises(KernelError, match="is self-attention"):
        selected_attention(q, k[:, :, :10], v[:, :, :10], picks, size)
    with pytest.raises(KernelError, match="give whole numbers"):
        selected_attention(q, k, v, picks.float(), size)
    with pytest.raises(KernelError, match="block_size = 0"):
        selected_attention(q, k, v, picks, 0)
    with pytest.raises(KernelError, match=r"lengths has shape \(2,\); give \(1,\)"):
        selected_attention(q, k, v, picks, size, lengths=torch.tensor([20, 20]))
    with pytest.raises(KernelError, match=r"segments has shape \(1, 19\); give \(1, 20\)"):
        selected_attention(q, k, v, picks, size, segments=torch.zeros(1, 19, dtype=torch.int64))
    if not HERE:
        with pytest.raises(BackendError, match="triton"):
            selected_attention(q, k, v, picks, size, backend="triton")
