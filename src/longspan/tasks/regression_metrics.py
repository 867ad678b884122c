"""Figures of predicted numbers; none is NaN where a number never changes, or where a split has one sequence.

Legend: N sequences, K numbers a sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Figure(Metric):
    """A figure of all predictions of a split, the mean over the K numbers: predictions are kept, and gathered over ranks."""

    full_state_update = False
    said: list[Tensor]
    right: list[Tensor]

    def __init__(self, kind: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.kind = kind
        for name in ("said", "right"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, said: Tensor, right: Tensor) -> None:
        """Predicted and right numbers, [N, K] each."""
        self.said.append(said.detach())
        self.right.append(right.detach())

    def compute(self) -> Tensor:
        said, right = (_joined(state).double() for state in (self.said, self.right))  # (N, K)
        error = said - right
        if self.kind == "mse":
            return error.square().mean().float()
        if self.kind == "mae":
            return error.abs().mean().float()
        if self.kind == "r2":
            spread = (right - right.mean(0)).square().sum(0)
            kept = torch.where(spread > 0, 1 - error.square().sum(0) / spread.clamp(min=1e-300), 0.0)
            return kept.mean().float()
        if self.kind == "spearman":
            said, right = ranks(said), ranks(right)
        return correlation(said, right).mean().float()


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    return torch.cat(state) if isinstance(state, list) else state


def ranks(values: Tensor) -> Tensor:
    """[N, K], the rank of each value in its column; equal values share the mean of their ranks."""
    out = torch.empty_like(values)
    for column in range(values.shape[1]):
        _, place, counts = values[:, column].unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0).to(values.dtype)
        out[:, column] = (last - (counts - 1) / 2)[place]
    return out


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """[K], Pearson's of columns [N, K]; 0 where one of the two never changes."""
    a, b = a - a.mean(0), b - b.mean(0)
    norm = a.square().sum(0).sqrt() * b.square().sum(0).sqrt()
    return torch.where(norm > 0, (a * b).sum(0) / norm.clamp(min=1e-300), 0.0)


def regression_metrics(numbers: int) -> dict[str, Any]:
    """One figure of each kind."""
    return {kind: Figure(kind) for kind in ("mse", "mae", "spearman", "pearson", "r2")}
