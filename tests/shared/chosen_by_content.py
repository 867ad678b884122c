"""What the tests of variants that choose by content share: a place, tensors, dense attention by a mask."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

CONF = Path(__file__).parents[2] / "conf" / "attention"
PLACE = {"heads": 4, "kv_heads": 2, "head_dim": 16, "causal": True, "layer": 0, "max_length": 200}


def configured(name: str, **settings):
    """The module of conf/attention/<name>.yaml at PLACE."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), settings))(**PLACE)


def draw(length: int, heads: int = 4, kv_heads: int = 2, width: int = 16, batch: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, n, length, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (heads, kv_heads, kv_heads)
    ]


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Attention by a mask [B, H, T, T]; 0 for queries without keys."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    dead = ~mask.any(-1, keepdim=True)
    weights = scores.masked_fill(~mask & ~dead, float("-inf")).softmax(-1)
    return (weights @ v).masked_fill(dead, 0.0)


def checked_against(module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, lengths: list[int] | None = None) -> None:
    """Outputs and gradients of a module are those of dense attention by a mask."""
    ends = None if lengths is None else torch.tensor(lengths)
    compare(module(q, k, v, lengths=ends), dense(q, k, v, mask), (q, k, v))


def checked_past_the_length(module) -> None:
    """NaN past the length of a sequence changes neither outputs nor gradients of the tokens before it."""
    q, k, v = draw(64)
    lengths = torch.tensor([64, 37])
    expected = module(q, k, v, lengths=lengths)
    with torch.no_grad():
        for x in (q, k, v):
            x[1, :, 37:] = float("nan")
    out = module(q, k, v, lengths=lengths)
    torch.testing.assert_close(out, expected)
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert gradient.isfinite().all()


def compare(out: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-8)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    ours, theirs = (torch.autograd.grad(o, leaves, weight, retain_graph=True, allow_unused=True) for o in (out, expected))
    for a, b, leaf in zip(ours, theirs, leaves, strict=True):
        a, b = (torch.zeros_like(leaf) if x is None else x for x in (a, b))
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)
