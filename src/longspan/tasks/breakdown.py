"""Breaks a task's figures down by a number that each item has: a distance, or the length of its context.

Such figures are for the record and its report, not for a logger: a list of rows for each split.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

BREAKDOWN = "breakdown"  # what the groups of a task's metrics that are kept here begin with
BY_CLASS = "breakdown_by_class"


class MeanByLength(Metric):
    """Mean of a figure for each doubling of a length: 0, 1, 2 to 3, 4 to 7, ...

    Args:
        figure: what the mean is of, such as ``bits_per_byte``.
        length: what the length is, in words.
    """

    full_state_update = False
    doublings = 40
    values: Tensor
    items: Tensor
    lengths: Tensor

    def __init__(self, figure: str, length: str, higher_is_better: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.figure, self.length_is, self.higher = figure, length, higher_is_better
        # float32 and whole numbers: not every device has float64
        self.add_state("values", torch.zeros(self.doublings), dist_reduce_fx="sum")
        self.add_state("items", torch.zeros(self.doublings, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("lengths", torch.zeros(self.doublings, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor, lengths: Tensor) -> None:
        """Figures [N] and the lengths [N] of their items, whole numbers from 0 on."""
        edges = 2 ** torch.arange(self.doublings - 1, device=lengths.device)
        doubling = torch.bucketize(lengths, edges, right=True)  # (N,)
        self.values.scatter_add_(0, doubling, values.detach().float())
        self.items.scatter_add_(0, doubling, torch.ones_like(doubling))
        self.lengths.scatter_add_(0, doubling, lengths.to(torch.int64))

    def compute(self) -> Tensor:
        """[3, doublings]: means, items counted, sums of their lengths; a mean is 0 where nothing was counted."""
        return torch.stack([self.values / self.items.clamp(min=1), self.items, self.lengths])

    def rows(self) -> list[dict[str, Any]]:
        """For each doubling that occurred its mean length, the mean figure, and how many items."""
        return [
            {"length": round(float(total / count), 1), "value": float(mean), "items": int(count)}
            for mean, count, total in self.compute().double().cpu().T
            if count
        ]

    def to_record(self) -> Any:
        """The figures for the run's record."""
        return {"figure": self.figure, "length": self.length_is, "higher_is_better": self.higher, "rows": self.rows()}


class Breakdown(pl.Callback):
    """Tells the run record of a task's breakdowns: ``extra.NAME.SPLIT`` for each metric NAME of that group."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def keep(self, metrics: Any, split: str) -> None:
        """Takes the figures of one evaluation over, and begins anew."""
        for name, metric in metrics.items():
            if metric.update_called:
                self.kept.setdefault(name.removeprefix(f"{split}/"), {})[split] = metric.to_record()
                metric.reset()

    def record_extra(self) -> dict[str, Any]:
        return {name: dict(splits) for name, splits in self.kept.items()}


def places_before(tokens: Tensor) -> Tensor:
    """[B, T]: how many tokens stand before each, in its row."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)


def nearer_side(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, T]: how many tokens of its sequence each has on the side where it has fewer."""
    before = places_before(tokens)
    ends = torch.full_like(tokens[:, :1], tokens.shape[1]) if lengths is None else lengths[:, None]
    return torch.minimum(before, ends - 1 - before).clamp(min=0)
