"""Precision, recall and F1 of each class, and which class is taken for which.

Legend: N items, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class PerClass(Metric):
    """Counts for the record: of single labels a confusion matrix, of several labels hits and misses of each.

    Args:
        class_names: K names.
        multi_label: whether items have any number of labels, [N, K] of 0 and 1, rather than class numbers [N].
    """

    full_state_update = False
    table: Tensor

    def __init__(self, class_names: Sequence[str], *, multi_label: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.class_names, self.multi_label = list(class_names), multi_label
        size = len(self.class_names)
        # rows true, columns predicted; of several labels [K, 2, 2], of each one whether it is true and whether predicted
        shape = (size, 2, 2) if multi_label else (size, size)
        self.add_state("table", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Labels as predicted and as they are, [N] or [N, K] both."""
        size = len(self.class_names)
        if self.multi_label:
            label = torch.arange(size, device=true.device).expand_as(true)  # (N, K)
            place = (label * 4 + true.long() * 2 + predicted.long()).flatten()
        else:
            place = true.long() * size + predicted.long()
        self.table += torch.bincount(place, minlength=self.table.numel()).view(self.table.shape)

    def compute(self) -> Tensor:
        return self.table

    def to_record(self) -> dict[str, Any]:
        """The figures for the run's record: `classes`, a row each with precision, recall, F1 and support; and `confusion`."""
        table = self.table.cpu()
        if self.multi_label:
            hits, true, predicted = table[:, 1, 1], table[:, 1].sum(1), table[:, :, 1].sum(1)
        else:
            hits, true, predicted = table.diagonal(), table.sum(1), table.sum(0)
        rows = []
        for name, hit, is_true, said in zip(self.class_names, hits.tolist(), true.tolist(), predicted.tolist(), strict=True):
            rows.append(
                {
                    "class": name,
                    "precision": hit / said if said else None,
                    "recall": hit / is_true if is_true else None,
                    "f1": 2 * hit / (said + is_true) if said + is_true else None,
                    "support": is_true,
                }
            )
        return {"classes": rows, "confusion": None if self.multi_label else table.tolist()}
