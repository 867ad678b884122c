"""Scores of any size a dtype holds, and every dtype a backend takes: outputs and gradients stay those of the definition."""

import pytest
import torch
from interpreted import BACKENDS_HERE, interpreting

from longspan.functional import sparse_attention
from longspan.patterns import BigBird, Global, Local, Strided
from longspan_kernels.selected import choose_blocks, choose_scored_blocks

FAST = [b for b in BACKENDS_HERE if b != "dense"]
PATTERNS = [Local(16), Strided(5) | Local(4), BigBird(16, 1, 1, 1), Global(first=3)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(pattern, q, k, v, grad, backend, dtype):
    leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
    with interpreting(backend):
        out, lse = sparse_attention(*leaves, pattern, backend=backend, return_lse=True)
        out.backward(grad.to(dtype))
    return out.detach(), lse.detach(), *(x.grad for x in leaves)


def drawn(seed, length=40):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 2, length, 32, generator=g) for _ in range(4)]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("power", [2, 4, 6, 8, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_up_to_ten_thousand_million(backend, power, dtype):
    """Weights are as good as a score's own digits: queries whose two best scores are too close for those say nothing here."""
    pattern = PATTERNS[power // 2 % len(PATTERNS)]
    q, k, v, grad = drawn(power)
    q, k = (x * 10 ** (power / 2) for x in (q, k))
    if dtype == torch.float16:
        q, k = q.clamp(-6e4, 6e4), k.clamp(-6e4, 6e4)
    q, k, v, grad = (x.to(dtype).double() for x in (q, k, v, grad))
    scores = (q @ k.transpose(2, 3) / 32**0.5).masked_fill(~pattern.mask(40, heads=2), float("-inf"))
    best = scores.topk(2).values
    digits = 2.0**-21 * best[..., 0].abs()
    clear = (digits < 1e-2) | (best[..., 0] - best[..., 1] > 32 * digits)  # (B, H, T)
    assert clear.float().mean() > 0.8
    grad = grad * clear[..., None]
    exact = run(pattern, q, k, v, grad, "dense", torch.float64)
    got = run(pattern, q, k, v, grad, backend, dtype)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype] + 2 * float(
        digits.where(digits < 1e-2, 0.0).max()
    )
    for name, ours, right in zip(("out", "lse", "dq", "dk", "dv"), got, exact, strict=True):
        if name == "out":
            ours, right = ours[clear], right[clear]
        size = right.abs().max()
        if name in ("dq", "dk"):  # what is left of p * (dp - delta): terms of this size cancel
            size = size + (k if name == "dq" else q).abs().max() * 10
        off = float((ours.double() - right).abs().max() / size)
        assert off < rounding, f"{name} is off by {off:.1e}"


@pytest.mark.parametrize("backend", FAST)
def test_equal_large_scores_share_alike(backend):
    """All scores of a row are the same number: weights are 1/n, but for the digits that their log-sum-exp has not."""
    _, _, v, grad = drawn(3)
    for size in (1.0, 256.0, 2.0**16):
        q, k = torch.full_like(v, size), torch.ones_like(v)
        out, _, _, _, dv = run(Local(9), q, k, v, grad, backend, torch.float32)
        exact = run(Local(9), *(x.double() for x in (q, k, v, grad)), "dense", torch.float64)
        torch.testing.assert_close(out.double(), exact[0], atol=1e-5, rtol=1e-5)
        digits = 2.0**-20 * size * 32**0.5
        assert (dv - exact[4]).abs().max() < (1e-5 + digits) * exact[4].abs().max()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_dtypes(backend, dtype, pattern):
    q, k, v, grad = (x.to(dtype).float() for x in drawn(1))
    exact = run(pattern, *(x.double() for x in (q, k, v, grad)), "dense", torch.float64)
    digit = torch.finfo(dtype).eps
    for ours, right in zip(run(pattern, q, k, v, grad, backend, dtype), exact, strict=True):
        assert ours.dtype in (dtype, torch.float32)
        assert (ours.double() - right).norm() < (4 * digit + 1e-5) * right.norm()


@pytest.mark.skipif("triton" not in FAST, reason="a GPU is here: tests/gpu runs the compiled kernels")
def test_interpreted_bfloat16_makes_the_choices_of_its_numbers():
    g = torch.Generator().manual_seed(0)
    q, means = torch.randn(1, 2, 70, 16, generator=g).bfloat16(), torch.randn(1, 1, 5, 16, generator=g).bfloat16()
    scores = (q.float() @ means.float().transpose(2, 3)).bfloat16()
    with interpreting():
        for ours, right in (
            (choose_blocks(q, means, 2, 16, causal=True, backend=b) for b in ("triton", "blocked")),
            (choose_scored_blocks(scores.float(), 2, 16, 70, causal=True, backend=b) for b in ("triton", "blocked")),
        ):
            assert torch.equal(ours.sort(-1).values, right.sort(-1).values)
        chosen = choose_scored_blocks(scores, 2, 16, 70, causal=True, backend="triton")
    picked = scores.float().gather(3, chosen.clamp(min=0)).masked_fill(chosen < 0, 0.0).sum(-1)
    right_sum = scores.float().gather(3, right.clamp(min=0)).masked_fill(right < 0, 0.0).sum(-1)
    assert torch.equal(picked, right_sum)
