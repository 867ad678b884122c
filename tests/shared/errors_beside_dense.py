"""How far sparse attention and torch's dense attention in one dtype are from float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longspan import sparse_attention
from longspan.patterns import Pattern


def errors_beside_dense(
    pattern: Pattern, causal: bool, length: int, dtype: torch.dtype, device: str, width: int = 64
) -> dict[str, tuple[float, float]]:
    """(ours, dense) for the output and each gradient: the norm of what is off, over that of the float64 result."""
    g = torch.Generator(device=device).manual_seed(0)
    q, k, v, dout = (torch.randn(1, 2, length, width, device=device, generator=g).to(dtype) for _ in range(4))
    mask = pattern.mask(length, length, heads=2, causal=causal, device=device)[None]

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = sparse_attention(q, k, v, pattern, causal=causal, backend="triton")
        assert isinstance(out, Tensor)
        return out

    def results(attend, to: torch.dtype) -> list[Tensor]:
        leaves = [x.to(to).requires_grad_() for x in (q, k, v)]
        out = attend(*leaves)
        return [x.double() for x in (out.detach(), *torch.autograd.grad(out, leaves, dout.to(to)))]

    right = results(dense, torch.float64)
    off = [[float((a - b).norm() / b.norm()) for a, b in zip(results(f, dtype), right, strict=True)] for f in (ours, dense)]
    return dict(zip(("out", "dq", "dk", "dv"), zip(*off, strict=True), strict=True))
