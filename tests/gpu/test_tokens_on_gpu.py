"""Attention to tokens chosen one by one on a GPU: the choice of a stable sort, outputs and gradients of the definition."""

import pytest
import torch

import longspan.attention as variants
from longspan_kernels.launch.graphs import clear_caches
from longspan_kernels.selected import attend_to_tokens, choose_tokens, selected_reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def by_sorting(scores, n, ends):
    """[B, T, n] of index scores [B, T, T]: the earliest among equals first."""
    length = scores.shape[1]
    at = torch.arange(length, device="cuda")
    live = (at <= at[:, None]) & (at[:, None] < ends[:, None, None])
    best = scores.masked_fill(~live, float("-inf")).sort(dim=-1, descending=True, stable=True)
    found = torch.where(best.values > float("-inf"), best.indices, length)[..., :n].sort(-1).values
    found = torch.nn.functional.pad(found, (0, n - found.shape[-1]), value=length)
    return torch.where(found == length, -1, found).int()


@pytest.mark.parametrize("kind", ["random", "equal", "crowded"])
@pytest.mark.parametrize(
    ("length", "n", "heads", "width", "dtype"),
    [(3000, 128, 4, 64, torch.bfloat16), (700, 1024, 2, 64, torch.bfloat16), (900, 70, 6, 40, torch.float32)],
)
def test_the_choice_is_that_of_a_stable_sort(length, n, heads, width, dtype, kind):
    torch.manual_seed(0)
    shapes = ((2, length, heads, width), (2, length, width), (2, length, heads))
    q, k, w = ((torch.randn(shape, device="cuda") * 1.5).round() for shape in shapes)  # sums are exact, and many equal
    if kind == "equal":
        q, k, w = (torch.ones_like(x) for x in (q, k, w))
    if kind == "crowded":  # the best tokens share a few lanes, so the bound is low
        k = torch.where((torch.arange(length, device="cuda") % 512 < 8)[:, None], 9.0, k)
        q, w = q.abs(), w.abs()
    q, k, w = (x.to(dtype) for x in (q.transpose(1, 2), k, w.transpose(1, 2)))
    ends = torch.tensor([length, length // 3], device="cuda")
    chosen, again = (choose_tokens(q, k, w, n, lengths=ends, backend="triton") for _ in range(2))
    scores = ((q.double() @ k.double()[:, None].mT).relu() * w.double()[..., None]).sum(1)
    assert chosen.equal(by_sorting(scores, n, ends)) and chosen.equal(again)


@pytest.mark.parametrize("few_at_once", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "length", "width", "n", "dtype", "tolerance"),
    [
        (1, 16, 1, 1500, 64, 256, torch.bfloat16, 6e-3),
        (1, 16, 1, 1500, 64, 256, torch.float32, 2e-6),
        (2, 8, 2, 600, 128, 100, torch.bfloat16, 6e-3),
        (2, 4, 2, 600, 32, 100, torch.bfloat16, 6e-3),
        (1, 4, 4, 500, 80, 60, torch.float16, 1e-3),
    ],
)
def test_outputs_and_gradients_are_the_definitions(
    batch, heads, kv_heads, length, width, n, dtype, tolerance, few_at_once, monkeypatch
):
    from longspan_kernels.selected.triton import configs

    clear_caches()
    monkeypatch.setattr(configs, "TOKEN_BYTES", 1 if few_at_once else configs.TOKEN_BYTES)
    torch.manual_seed(0)
    q, k, v, dout = (
        torch.randn(batch, h, length, width, device="cuda", dtype=dtype) for h in (heads, kv_heads, kv_heads, heads)
    )
    picks = torch.rand(batch, length, length, device="cuda").argsort(-1)[..., :n]
    picks = torch.where(picks > torch.arange(length, device="cuda")[:, None], -1, picks)
    leaves, exact = ([x.to(kind, copy=True).requires_grad_() for x in (q, k, v)] for kind in (dtype, torch.float64))
    expected, _ = selected_reference(*exact, picks[:, None].expand(-1, kv_heads, -1, -1), 1)
    out = attend_to_tokens(*leaves, picks, backend="triton")
    first, second = (torch.autograd.grad(out, leaves, dout, retain_graph=True) for _ in range(2))
    clear_caches()
    wanted = torch.autograd.grad(expected, exact, dout.double())
    for mine, want in zip((out, *first), (expected, *wanted), strict=True):
        assert float((mine.double() - want).norm() / want.norm()) < tolerance
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_nothing_waits_for_the_device():
    torch.manual_seed(0)
    module = variants.dsa(heads=4, kv_heads=1, head_dim=64, causal=True, top_k=64, max_length=500).cuda().bfloat16().eval()
    q, k, v = (torch.randn(2, h, 500, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (4, 1, 1))
    lengths = torch.tensor([500, 311], device="cuda")
    module(q, k, v, lengths=lengths).square().sum().backward()  # compiles kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(q, k, v, lengths=lengths).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
