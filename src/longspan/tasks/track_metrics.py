"""Correlations of numbers along sequences; only sums are kept, so that memory does not grow with a split.

Legend: B batch, n bins (or pairs of bins), K tracks, G groups of tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

PSEUDOCOUNT = 0.1


class TrackPearson(Metric):
    """Pearson's correlation over all bins of a split, the mean over groups of tracks; 0 for a group that never changes.

    Args:
        groups: tracks whose numbers are correlated together, such as the two strands of an assay; None: each by itself.
        counts: [K], whether a track holds log10(count + 1), and log10(count + 0.1) is correlated, as of Puffin; None: none.
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor

    def __init__(
        self, tracks: int, groups: Sequence[Sequence[int]] | None = None, counts: Sequence[bool] | None = None, **keys: Any
    ) -> None:
        super().__init__(**keys)
        self.groups = [[track] for track in range(tracks)] if groups is None else [list(group) for group in groups]
        self.counts = [False] * tracks if counts is None else [bool(count) for count in counts]
        # of each track: bins, sums of said, right, said squared, right squared, their product
        self.add_state("sums", torch.zeros(6, tracks, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, said: Tensor, right: Tensor) -> None:
        """Predicted and right numbers, [B, n, K] each; NaN in the second where nothing is known."""
        known = ~right.isnan()
        both = []
        for values in (said, right):
            values = torch.where(known, values.detach().double(), 0.0)
            if any(self.counts):
                logs = ((10**values - 1).clamp(min=0) + PSEUDOCOUNT).log10()
                values = torch.where(torch.tensor(self.counts, device=values.device), logs, values)
            both.append(torch.where(known, values, 0.0).flatten(0, -2))
        a, b = both  # (B n, K) each
        terms = (known.flatten(0, -2).double(), a, b, a * a, b * b, a * b)
        self.sums += torch.stack([term.sum(0) for term in terms])

    def compute(self) -> Tensor:
        pooled = torch.stack([self.sums[:, group].sum(1) for group in self.groups], 1)  # (6, G)
        return correlation_of(pooled).mean().float()


class SequencePearson(Metric):
    """Pearson's correlation over all numbers of a sequence, tracks and bins together, the mean over sequences."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    sequences: Tensor

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sequences", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, said: Tensor, right: Tensor) -> None:
        """As of `TrackPearson`; a sequence without a known number does not count."""
        known = ~right.isnan().flatten(1)
        self.total += correlation_of(_sums(said.flatten(1), right.flatten(1), known)).sum()
        self.sequences += known.any(1).sum()

    def compute(self) -> Tensor:
        return (self.total / self.sequences.clamp(min=1)).float()


class StratumCorrelation(Metric):
    """The stratum-adjusted correlation of contact maps (HiCRep, doi:10.1101/gr.220640.117), the mean over sequences and tracks.

    Of each distance between bins, a stratum, Pearson's correlation r; the mean of r weighs a stratum of N pairs by
    N (1 - 1 / N^2) / 12, N times the variance of its ranks. Maps are not smoothed. Strata in which the right numbers do not
    change do not count; where the predicted ones do not, r is 0.

    Args:
        bins: of a map, whose pairs are ordered as `torch.triu_indices(bins, bins, apart)`.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    maps: Tensor

    def __init__(self, bins: int, apart: int = 2, **keys: Any) -> None:
        super().__init__(**keys)
        first, second = torch.triu_indices(bins, bins, apart)
        self.stratum = second - first - apart  # [P]
        self.strata = max(bins - apart, 1)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("maps", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, said: Tensor, right: Tensor) -> None:
        """As of `TrackPearson`, [B, P, K]."""
        a, b = said.detach().transpose(1, 2).flatten(0, 1), right.transpose(1, 2).flatten(0, 1)  # (B K, P)
        known, stratum = ~b.isnan(), self.stratum.to(b.device)
        counts = _by(stratum, known.double(), self.strata)
        centred = []
        for values in (a, b):
            values = torch.where(known, values.double(), 0.0)
            mean = _by(stratum, values, self.strata) / counts.clamp(min=1)
            centred.append(torch.where(known, values - mean[:, stratum], 0.0))
        a, b = centred
        product, of_a, of_b = (_by(stratum, term, self.strata) for term in (a * b, a * a, b * b))  # (B K, strata)
        r = torch.where((of_a > 0) & (of_b > 0), product / (of_a * of_b).sqrt().clamp(min=1e-300), 0.0)
        weight = torch.where(of_b > 0, counts * (1 - 1 / counts.clamp(min=1) ** 2) / 12, 0.0)
        self.total += (torch.where(weight > 0, weight * r, 0.0).sum(1) / weight.sum(1).clamp(min=1e-300)).sum()
        self.maps += (weight > 0).any(1).sum()

    def compute(self) -> Tensor:
        return (self.total / self.maps.clamp(min=1)).float()


def _by(stratum: Tensor, values: Tensor, strata: int) -> Tensor:
    """[rows, strata], sums of values [rows, P]."""
    return torch.zeros(len(values), strata, dtype=values.dtype, device=values.device).index_add_(1, stratum, values)


def _sums(said: Tensor, right: Tensor, known: Tensor) -> Tensor:
    """[6, B] of rows [B, N], as `correlation_of` takes them; rows are centred first."""
    count = known.sum(1, dtype=torch.float64)
    both = []
    for values in (said, right):
        values = torch.where(known, values.detach().double(), 0.0)
        mean = values.sum(1, keepdim=True) / count.clamp(min=1)[:, None]
        both.append(torch.where(known, values - mean, 0.0))
    a, b = both
    return torch.stack([count, a.sum(1), b.sum(1), (a * a).sum(1), (b * b).sum(1), (a * b).sum(1)])


def correlation_of(sums: Tensor) -> Tensor:
    """[columns], Pearson's, of [6, columns]: numbers, sums of either, of their squares and of their products.

    0 where one of the two never changes, up to what rounding leaves of sums of squares.
    """
    count, a, b, aa, bb, ab = sums
    count = count.clamp(min=1)
    of_a, of_b, product = aa - a * a / count, bb - b * b / count, ab - a * b / count
    varied = (of_a > 1e-12 * aa) & (of_b > 1e-12 * bb)
    return torch.where(varied, product / (of_a * of_b).clamp(min=1e-300).sqrt(), 0.0)
