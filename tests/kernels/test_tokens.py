"""Attention to tokens chosen one by one, against its dense definition: plain torch and interpreted Triton."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longspan_kernels.errors import KernelError
from longspan_kernels.launch.graphs import clear_caches
from longspan_kernels.selected import attend_to_tokens, selected_reference, tokens

HERE = torch.cuda.is_available()
# plain torch in both of its ways: all keys scored under a mask, and the picked ones gathered
BACKENDS = [
    "blocked",
    "blocked, gathered",
    pytest.param("triton", marks=pytest.mark.skipif(HERE, reason="tests/gpu runs the compiled kernels")),
]


def drawn(batch, kv_heads, group, length, width, n, dtype):
    """Tensors, and causal picks: fewer at the start, none at all for a query."""
    g = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(batch, h, length, width, generator=g).to(dtype) for h in (kv_heads * group, kv_heads, kv_heads))
    scores = torch.rand(batch, length, length, generator=g).tril() - torch.ones(length, length).triu(1)
    best = scores.topk(min(n, length), -1)
    picks = torch.where(best.values <= 0.0, -1, best.indices)
    picks[:, length // 2] = -1
    return q, k, v, torch.nn.functional.pad(picks, (0, n - picks.shape[-1]), value=-1)


CASES = [(1, 1, 16, 23, 16, 5), (2, 2, 3, 17, 20, 4), (1, 2, 1, 9, 16, 40), (1, 1, 2, 70, 16, 66)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_are_the_definitions(case, backend, monkeypatch):
    backend, _, gathered = backend.partition(", ")
    dtype = torch.float64 if backend == "blocked" else torch.float32
    if gathered:
        monkeypatch.setattr(tokens, "GATHERED", -(1 << 20))
    if backend == "triton":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        from longspan_kernels.selected.triton import configs

        clear_caches()
        monkeypatch.setattr(configs, "TOKEN_BYTES", 1)  # 32 queries at a time
    q, k, v, picks = drawn(*case, dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = attend_to_tokens(*leaves, picks, return_lse=True, backend=backend)
    expected, expected_lse = selected_reference(*exact, picks[:, None].expand(-1, k.shape[1], -1, -1), 1)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=tolerance)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = torch.autograd.grad(expected, exact, dout)
    dout[:, :, q.shape[2] // 2] = float("nan")  # a query without picks hands on no gradient
    first, second = (torch.autograd.grad(out, leaves, dout.to(dtype), retain_graph=True) for _ in range(2))
    for mine, again, want in zip(first, second, theirs, strict=True):
        torch.testing.assert_close(mine.double(), want, atol=tolerance, rtol=tolerance)
        assert mine.equal(again)


def test_operators_are_well_formed_and_count_their_flops():
    q, k, v, picks = drawn(1, 1, 2, 12, 16, 3, torch.float32)
    torch.library.opcheck(
        torch.ops.longspan.tokens_forward, (*(x.requires_grad_() for x in (q, k, v)), picks.int(), 0.25, "blocked")
    )
    with FlopCounterMode(display=False) as counter:
        attend_to_tokens(q, k, v, picks).sum().backward()
    assert counter.get_total_flops() == (4 + 10) * 16 * 2 * 12 * 3


def test_wrong_calls_are_named():
    q, k, v, picks = drawn(1, 1, 2, 12, 16, 3, torch.float32)
    with pytest.raises(KernelError, match=r"picks \(1, 11, 3\) do not fit"):
        attend_to_tokens(q, k, v, picks[:, :11])
    q, k, v, picks = drawn(2, 2, 2, 12, 16, 3, torch.float32)
    for wrong in (k[:1], k[..., :8], k[:, [0, 1, 1]]):  # a batch of 1, a narrower head, 3 key/value heads of 4
        with pytest.raises(KernelError, match=r"and k .* give .* where Hkv divides H"):
            attend_to_tokens(q, wrong, wrong, picks)
