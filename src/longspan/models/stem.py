"""A short convolution over embeddings, so that a token's vector tells of its neighbours before any attention.

Where tokens are single bases, what matters are words of a few of them. Attention finds neighbours only once its heads have
learned to look one place aside, which takes the longer the more keys they see; most models of DNA, and recurrent ones of
text, begin with a short convolution instead (Hyena, arXiv:2302.10866; Enformer, doi:10.1038/s41592-021-01252-x).

Legend: B batch, T tokens, C model width, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Stem(nn.Module):
    """Each channel of a token becomes a weighted sum of that channel in K neighbouring tokens, itself included.

    A causal one looks at the K - 1 tokens before, another one at K // 2 on each side. What lies outside the sequence, past
    its length or in another segment counts for nothing.

    Args:
        width: C.
        taps: K, odd unless causal.
        causal: whether later tokens are out of sight.
    """

    def __init__(self, width: int, taps: int, causal: bool) -> None:
        super().__init__()
        self.offsets = range(1 - taps, 1) if causal else range(-(taps // 2), taps // 2 + 1)
        self.weight = nn.Parameter(torch.randn(taps, width) * taps**-0.5)
        with torch.no_grad():
            self.weight[list(self.offsets).index(0)] += 1.0  # a token is itself first of all

    @property
    def past(self) -> int:
        """Embeddings before a token that a causal stem looks at."""
        return len(self.offsets) - 1

    def forward(self, x: Tensor, lengths: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """[B, T, C] of embeddings [B, T, C]."""
        T = x.shape[1]
        if lengths is not None:
            x = x.masked_fill((torch.arange(T, device=x.device) >= lengths[:, None])[..., None], 0.0)
        out = torch.zeros_like(x)
        for weight, offset in zip(self.weight, self.offsets, strict=True):
            if abs(offset) >= T:
                continue
            here, there = slice(max(0, -offset), T - max(0, offset)), slice(max(0, offset), T - max(0, -offset))
            neighbours = x[:, there] * weight  # (B, T - |offset|, C)
            if segments is not None and offset:
                neighbours = neighbours * (segments[:, there] == segments[:, here])[..., None]
            pad = (0, 0, here.start, T - here.stop)
            out = out + nn.functional.pad(neighbours, pad)
        return out

    def decode(self, x: Tensor, past: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, n, C] of n new embeddings [B, n, C] after `past` [B, K - 1, C], and the past of the tokens after them."""
        B, n, C = x.shape
        both = torch.cat((past, x), 1)  # (B, K - 1 + n, C)
        out = sum((weight * both[:, tap : tap + n] for tap, weight in enumerate(self.weight)), torch.zeros_like(x))
        ends = torch.full((B,), n, device=x.device) if lengths is None else lengths.to(x.device)
        kept = (ends[:, None] + torch.arange(past.shape[1], device=x.device))[..., None].expand(B, past.shape[1], C)
        return out, both.gather(1, kept)
