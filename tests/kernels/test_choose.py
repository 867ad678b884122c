"""The blocks that queries choose: the definition token by token, plain torch, and the Triton kernels as interpreted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.selected import (
    block_means,
    choose,
    choose_blocks,
    choose_important_blocks,
    choose_scored_blocks,
    choose_tokens,
)

HERE = torch.cuda.is_available()
interpreted = pytest.mark.skipif(HERE, reason="a GPU is here: tests/gpu runs the compiled kernels")


def may_pick(number, i, length, size, causal):
    return i < length and number * size < length and (number < i // size if causal else number != i // size)


def check(picks, scores, n, size, length, causal, lengths, first=0):
    """Picks of a call against scores [B, H, rows, nb] in float64: as many as may be, distinct, and none better left out."""
    B, H, rows, blocks = scores.shape
    assert picks.shape == (B, H, rows, n) and picks.dtype == torch.int32
    ends = [length] * B if lengths is None else lengths.tolist()
    for b in range(B):
        for r in range(rows):
            candidates = [c for c in range(blocks) if may_pick(c, first + r, ends[b], size, causal)]
            for h in range(H):
                found = [c for c in picks[b, h, r].tolist() if c >= 0]
                assert len(found) == len(set(found)) == min(n, len(candidates)) and set(found) <= set(candidates)
                left = [scores[b, h, r, c].item() for c in candidates if c not in found]
                if found and left:
                    worst = min(scores[b, h, r, c].item() for c in found)
                    assert worst >= max(left) - 2e-6 * (1 + abs(worst))  # rounding of float32


@st.composite
def calls(draw):
    size = draw(st.sampled_from([16, 32, 48]))
    batch, heads_a_group, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    length, width = draw(st.integers(1, 150)), draw(st.sampled_from([16, 20, 48]))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    blocks = -(-length // size)
    q = torch.randn(batch, heads_a_group * groups, length, width, generator=g).to(dtype)
    if draw(st.booleans()):
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    means = torch.randn(batch, groups, blocks, width, generator=g)
    if draw(st.booleans()):
        means = means.to(dtype)
    lengths = None
    if draw(st.booleans()):
        lengths = torch.randint(0, length + 1, (batch,), generator=g).to(draw(st.sampled_from([torch.int32, torch.int64])))
    return q, means, draw(st.integers(1, 6)), size, draw(st.booleans()), lengths


def scores_of(q, means):
    return q.double() @ means.double().repeat_interleave(q.shape[1] // means.shape[1], 1).transpose(2, 3)


@settings(max_examples=40, deadline=None)
@given(calls())
def test_plain_torch_picks_the_best(call):
    q, means, n, size, causal, lengths = call
    picks = choose_blocks(q, means, n, size, causal=causal, lengths=lengths, backend="blocked")
    check(picks, scores_of(q, means), n, size, q.shape[2], causal, lengths)


@interpreted
@settings(max_examples=40, deadline=None)
@given(calls())
def test_the_kernel_picks_the_best(call):
    pytest.importorskip("triton")
    q, means, n, size, causal, lengths = call
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        picks = choose_blocks(q, means, n, size, causal=causal, lengths=lengths, backend="triton")
    check(picks, scores_of(q, means), n, size, q.shape[2], causal, lengths)


@interpreted
@settings(max_examples=25, deadline=None)
@given(calls(), st.integers(0, 100), st.integers(1, 60))
def test_the_kernel_picks_by_given_scores(call, first, rows):
    pytest.importorskip("triton")
    q, means, n, size, causal, lengths = call
    length = q.shape[2]
    first = min(first, length - 1)
    scores = scores_of(q, means).float()[:, :, first : first + rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for backend in ("triton", "blocked"):
            picks = choose_scored_blocks(
                scores, n, size, length, causal=causal, first_row=first, lengths=lengths, backend=backend
            )
            check(picks, scores.double(), n, size, length, causal, lengths, first)


@interpreted
@pytest.mark.parametrize("n", [3, 16])
def test_many_chunks_of_candidates_keep_the_best_of_all(monkeypatch, n):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    g = torch.Generator().manual_seed(0)
    q, means = torch.randn(1, 1, 130, 16, generator=g), torch.randn(1, 1, 200, 16, generator=g)
    picks = choose_blocks(q, means, n, 1, causal=False, backend="triton")
    check(picks, scores_of(q, means), n, 1, 130, False, None)


@interpreted
def test_among_equals_the_kernel_picks_the_first(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    levels = torch.tensor([1.0, 0.0, 2.0, 1.0, 2.0, 1.0, 0.0, 1.0]).repeat(17)  # several chunks
    picks = choose_scored_blocks(levels.expand(1, 1, 4, 136), 5, 1, 137, causal=True, first_row=133, backend="triton")
    assert picks[0, 0, 0].tolist() == [2, 4, 10, 12, 18]
    picks = choose_scored_blocks(torch.zeros(1, 1, 4, 136), 5, 1, 137, causal=True, first_row=2, backend="triton")
    assert picks[0, 0].tolist() == [[0, 1, -1, -1, -1], [0, 1, 2, -1, -1], [0, 1, 2, 3, -1], [0, 1, 2, 3, 4]]


@interpreted
def test_what_lies_past_the_length_does_not_matter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, means, lengths = torch.randn(2, 2, 70, 16), torch.randn(2, 1, 5, 16), torch.tensor([70, 33])
    expected = choose_blocks(q, means, 2, 16, causal=True, lengths=lengths, backend="triton")
    q[1, :, 33:] = float("nan")
    assert choose_blocks(q, means, 2, 16, causal=True, lengths=lengths, backend="triton").equal(expected)
    assert (expected[1, :, 33:] == -1).all()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_bit_of_a_mean_counts(dtype, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, means = torch.zeros(1, 1, 40, 16, dtype=dtype), torch.randn(1, 1, 40, 16)
    q[..., 3] = 1.0
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    means[0, 0, order, 3] = 1 + torch.arange(40) * 2.0**-23
    picks = choose_blocks(q, means, 1, 1, causal=False, backend="triton")[0, 0, :, 0]
    best = torch.where(torch.arange(40) == order[-1], order[-2], order[-1])  # its own is no candidate
    assert picks.long().equal(best)


@interpreted
@settings(max_examples=25, deadline=None)
@given(st.sampled_from([16, 24, 40]), st.integers(1, 70), st.sampled_from([1, 5, 16, 40]), st.booleans(), st.integers(0, 99))
def test_means_are_those_of_the_tokens_that_exist(width, length, size, cut, seed):
    pytest.importorskip("triton")
    torch.manual_seed(seed)
    x = torch.randn(2, length, 3, width).transpose(1, 2)
    lengths = torch.tensor([length, length // 2]) if cut else None
    if cut:
        x = x.clone()
        x[1, :, length // 2 :] = float("nan")
    blocks = -(-length // size)
    wanted = torch.zeros(2, 3, blocks, width)
    for b in range(2):
        end = length if lengths is None else int(lengths[b])
        for c in range(-(-end // size)):
            wanted[b, :, c] = x[b, :, c * size : min(end, c * size + size)].double().mean(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for backend in ("triton", "blocked"):
            torch.testing.assert_close(block_means(x, size, lengths=lengths, backend=backend), wanted, atol=1e-6, rtol=1e-5)
    assert block_means(x.double(), size, lengths=lengths).dtype == torch.float64


@pytest.mark.parametrize("backend", ["triton", "blocked"])
def test_means_of_lengths_beyond_the_tokens_are_those_of_the_tokens(backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, backend = torch.randn(2, 2, 40, 16), backend if not HERE else "blocked"
    means = block_means(x, 16, lengths=torch.tensor([64, -5]), backend=backend)
    torch.testing.assert_close(means[0], block_means(x[:1], 16, backend=backend)[0])
    assert not means[1].any()


@pytest.mark.parametrize("backend", ["triton", "blocked"])
def test_the_own_block_comes_first(backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, means = torch.randn(2, 4, 50, 16), torch.randn(2, 2, 4, 16)
    call = {"causal": True, "lengths": torch.tensor([50, 20]), "backend": backend if not HERE else "blocked"}
    alone, both = choose_blocks(q, means, 2, 16, **call), choose_blocks(q, means, 2, 16, own=True, **call)
    assert both[..., 1:].equal(alone) and (both[..., 0] == torch.arange(50) // 16).all()
    only = choose_blocks(q, means, 0, 16, own=True, **call)
    assert only.shape == (2, 4, 50, 1) and (only[..., 0] == torch.arange(50) // 16).all()


def test_tiles_fit_the_device():
    pytest.importorskip("triton")
    from longspan_kernels.block_sparse.triton.configs import SHARED
    from longspan_kernels.selected.triton.choose_kernels import PARTS, tile_of

    for dtype, parts in PARTS.items():
        for width in (16, 64, 80, 128, 256):
            q = torch.empty(1, 1, 1, width, dtype=dtype)
            for capability, kib in SHARED.items():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(
                        "longspan_kernels.selected.triton.choose_kernels.shared_memory", lambda _, kib=kib: kib * 1024
                    )
                    block_q, block_n = tile_of(q)
                if capability >= (8, 0):  # what the kernels need
                    padded = max(16, 1 << (width - 1).bit_length())
                    assert (parts * block_q + 6 * block_n) * padded * 2 <= kib * 1024
                    assert min(block_q, block_n) >= 16


def test_choosing_in_parts_changes_nothing(monkeypatch):
    q, means = torch.randn(2, 4, 90, 16), torch.randn(2, 2, 6, 16)
    whole = choose_blocks(q, means, 3, 16, causal=True)
    monkeypatch.setattr(choose, "SCORES_AT_ONCE", 500)
    assert choose_blocks(q, means, 3, 16, causal=True).sort().values.equal(whole.sort().values)


def test_nothing_to_choose():
    q = torch.randn(2, 4, 20, 16)
    assert choose_blocks(q, torch.randn(2, 2, 2, 16), 0, 16, causal=True).shape == (2, 4, 20, 0)
    assert choose_blocks(q[:, :, :0], torch.randn(2, 2, 0, 16), 3, 16, causal=True).shape == (2, 4, 0, 3)
    assert (choose_blocks(q, torch.randn(2, 2, 0, 16), 3, 16, causal=True) == -1).all()


def test_more_picks_than_the_kernel_holds_fall_to_torch(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, means = torch.randn(1, 1, 40, 16), torch.randn(1, 1, 40, 16)
    picks = choose_blocks(q, means, choose.MOST_PICKS + 1, 1, causal=False, backend="blocked" if HERE else "triton")
    check(picks, scores_of(q, means), choose.MOST_PICKS + 1, 1, 40, False, None)


def test_shapes_that_do_not_fit_are_named():
    q = torch.randn(2, 3, 40, 16)
    for means in (torch.randn(2, 2, 3, 16), torch.randn(2, 1, 3, 32), torch.randn(1, 1, 3, 16)):
        with pytest.raises(KernelError, match=r"means .* give \[2, a divisor of 3, blocks, 16\]"):
            choose_blocks(q, means, 1, 16, causal=True)
    with pytest.raises(KernelError, match=r"lengths has shape \(1,\); give \(2,\)"):
        choose_blocks(q, torch.randn(2, 1, 3, 16), 1, 16, causal=True, lengths=torch.tensor([20]))


@pytest.mark.parametrize("backend", ["triton", "blocked"])
@pytest.mark.parametrize(
    "lengths", [torch.tensor([20]), torch.tensor([[20], [30]]), torch.tensor(20)], ids=lambda x: str(x.shape)
)
def test_lengths_are_one_a_sequence(lengths, backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    call = {"lengths": lengths, "backend": backend if not HERE else "blocked"}
    q, lse = torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40)
    for choose_by_lengths in (
        lambda: block_means(q, 16, **call),
        lambda: choose_scored_blocks(torch.randn(2, 2, 40, 3), 1, 16, 40, causal=True, **call),
        lambda: choose_important_blocks(q, q[:, :, :2], lse, 2, 16, 16, 16, causal=True, **call),
        lambda: choose_tokens(q, q[:, 0], lse, 2, **call),
    ):
        with pytest.raises(KernelError, match=r"lengths has shape .*; give \(2,\)"):
            choose_by_lengths()


def test_a_backend_that_cannot_serve_is_named():
    q, means = torch.randn(1, 1, 40, 16).double(), torch.randn(1, 1, 3, 16).double()
    with pytest.raises(BackendError, match="float64"):
        choose_blocks(q, means, 2, 16, causal=True, backend="triton")
    with pytest.raises(BackendError, match="'fast' is unknown"):
        choose_blocks(q, means, 2, 16, causal=True, backend="fast")


@pytest.mark.parametrize("lengths", [None, torch.tensor([50, 20])])
def test_the_ops_compile_whole_and_give_no_gradient(lengths):
    q, means = torch.randn(2, 4, 50, 16, requires_grad=True), torch.randn(2, 2, 4, 16, requires_grad=True)

    def both(q, means):
        picks = choose_blocks(q, means, 2, 16, causal=True, lengths=lengths)
        scored = choose_scored_blocks((q @ means.repeat_interleave(2, 1).mT), 2, 16, 50, causal=True, lengths=lengths)
        return picks, scored, (q * (picks >= 0).sum(-1, keepdim=True)).sum()

    picks, scored, total = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=True)(q, means)
    assert picks.sort().values.equal(scored.sort().values) and not picks.requires_grad
    total.backward()
    assert q.grad is not None and means.grad is None
    torch.library.opcheck(torch.ops.longspan.choose_blocks, (q.detach(), means.detach(), lengths, 2, 16, True, True, "torch"))
    torch.library.opcheck(torch.ops.longspan.block_means, (q.detach(), lengths, 16, "torch"))
    scores = torch.randn(2, 2, 10, 4)
    torch.library.opcheck(torch.ops.longspan.choose_scored_blocks, (scores, lengths, 7, 50, 2, 16, True, "torch"))


@pytest.mark.parametrize("causal", [True, False])
def test_flops_are_those_of_a_variants_cost(causal):
    from longspan.attention import moba

    q, means = torch.randn(1, 4, 75, 16), torch.randn(1, 4, 5, 16)
    with FlopCounterMode(display=False) as counter:
        choose_blocks(q, means, 2, 16, causal=causal)
    cost = moba(block_size=16, top_k=3, heads=4, head_dim=16, causal=causal).cost(75)
    assert counter.get_total_flops() == cost.other_flops
