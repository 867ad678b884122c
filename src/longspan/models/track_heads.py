"""Heads for numbers along a sequence, in bins of tokens, and for numbers of pairs of bins.

Legend: B batch, T tokens, C model width, n bins with numbers, P pairs of bins, K tracks, R width of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longspan.config.errors import CallError
from longspan.cost import Cost, linear_flops
from longspan.models.strands import StrandHead
from longspan.models.transformer import Transformer

APART = 2  # bins nearer than that make no pair


def in_bins(hidden: Tensor, size: int, count: int, margin: int) -> Tensor:
    """[B, T, C] to [B, n, C] float32 or float64: the mean of each bin of `size` tokens, `count` of them after `margin`.

    Raises:
        CallError: the sequence ends before the last bin does.
    """
    end = margin + size * count
    if hidden.shape[1] < end:
        raise CallError(f"tokens are {hidden.shape[1]} long, but {count} bins of {size} after the first {margin} end at {end}")
    hidden = hidden[:, margin:end]
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    return hidden if size == 1 else hidden.unflatten(1, (count, size)).mean(2)


class TrackHead(StrandHead):
    """Hidden states [B, T, C] to numbers [B, n, K] of bins; each bin by itself.

    Args:
        bins: (tokens a bin, n, tokens before the first).
        bias: [K], what is said before anything is learned.
        swap: as of `StrandHead`.
    """

    def __init__(
        self,
        backbone: Transformer,
        bins: tuple[int, int, int],
        bias: Sequence[float],
        *,
        dropout: float = 0.0,
        swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(backbone, swap)
        self.bins = bins
        self.dropout = nn.Dropout(dropout)
        self.projection = _projection(self.strand_width, bias)

    def of_strand(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.projection(self.dropout(in_bins(hidden, *self.bins)).to(self.projection.weight.dtype))  # (B, n, K)

    def strand_cost(self, length: int) -> Cost:
        _, count, _ = self.bins
        return Cost(other_flops=linear_flops(count, self.projection.in_features, self.projection.out_features))


class ContactHead(StrandHead):
    """Hidden states [B, T, C] to numbers [B, P, K] of pairs of bins two or more apart.

    Pairs are in the order of `torch.triu_indices(n, n, 2)`. A pair's vector is the product of one projection of its two
    bins, the sum of another, and a vector for their distance; a layer reads it. It does not depend on which of the two comes
    first.

    Args:
        bins, bias: as of `TrackHead`.
        width: R.
    """

    def __init__(
        self,
        backbone: Transformer,
        bins: tuple[int, int, int],
        bias: Sequence[float],
        *,
        width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(backbone)
        self.bins, self.width = bins, width
        self.projections = nn.Linear(self.strand_width, 2 * width)
        self.distance = nn.Embedding(bins[1], width)
        nn.init.normal_(self.distance.weight, std=0.02)
        self.norm = nn.RMSNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.projection = _projection(width, bias)

    def of_strand(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        count = self.bins[1]
        first, second = torch.triu_indices(count, count, APART, device=hidden.device)  # (P,) each
        bins = self.projections(in_bins(hidden, *self.bins).to(self.projections.weight.dtype))  # (B, n, 2 R)
        factors, terms = bins.chunk(2, -1)
        pairs = factors[:, first] * factors[:, second] + terms[:, first] + terms[:, second]  # (B, P, R)
        pairs = pairs + self.distance(second - first)
        return self.projection(self.dropout(F.gelu(self.norm(pairs), approximate="tanh")))  # (B, P, K)

    def strand_cost(self, length: int) -> Cost:
        count = self.bins[1]
        pairs = (count - 1) * (count - 2) // 2
        of_bins = linear_flops(count, self.projections.in_features, self.projections.out_features)
        return Cost(other_flops=of_bins + linear_flops(pairs, self.width, self.projection.out_features))


def _projection(width: int, bias: Sequence[float]) -> nn.Linear:
    projection = nn.Linear(width, len(bias))
    nn.init.normal_(projection.weight, std=0.02)
    with torch.no_grad():
        projection.bias.copy_(torch.tensor(bias, dtype=projection.bias.dtype))
    return projection
