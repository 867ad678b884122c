"""The loss of class labels: cross-entropy with class weights, label smoothing (1512.00567) and a focal factor (1708.02002).

Legend: N items, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longspan.config.errors import wrong_value
from longspan.tasks.losses import IGNORED

BALANCED = "balanced"


@dataclass(frozen=True)
class ClassLoss:
    """Losses of items, each by itself.

    Attributes:
        smoothing: share of the target that is spread over all classes, in training.
        gamma: losses are multiplied by (1 - probability of the target) ** gamma; 0 leaves them as they are.
    """

    smoothing: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing < 1.0:
            raise wrong_value("task.label_smoothing", self.smoothing, "give a number from 0 up to, not including, 1")
        if not 0.0 <= self.gamma < float("inf"):
            raise wrong_value("task.focal_gamma", self.gamma, "give a number, 0 or more; 2 is the paper's")

    def single(self, logits: Tensor, targets: Tensor, weights: Tensor | None, *, training: bool) -> Tensor:
        """Logits [N, K] and class numbers [N] -> losses [N] in nats, times the weight of each one's class; 0 where ignored."""
        smoothing = self.smoothing if training else 0.0
        losses = F.cross_entropy(
            logits, targets, weights, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
        )  # (N,)
        if self.gamma:
            sure = logits.softmax(-1).gather(-1, targets.clamp(min=0)[:, None])[:, 0]  # (N,)
            losses = losses * (1 - sure).clamp(min=0) ** self.gamma
        return losses

    def several(self, logits: Tensor, targets: Tensor, weights: Tensor | None, *, training: bool) -> Tensor:
        """Logits [N, K] and targets [N, K] of 0 and 1 -> losses [N, K]; `weights` [K] multiply those of positives."""
        wanted = targets.float()
        if training and self.smoothing:
            wanted = wanted * (1 - self.smoothing) + self.smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=weights)
        if self.gamma:
            sure = torch.where(targets > 0, logits, -logits).sigmoid()
            losses = losses * (1 - sure) ** self.gamma
        return losses


def balanced_weights(counts: Sequence[int], names: Sequence[str], *, total: int | None = None) -> list[float]:
    """A weight a class, so that classes count alike: examples / (classes * examples of the class), as scikit-learn has it.

    Args:
        counts: training examples of each class; of several labels, positives of each.
        total: of several labels, examples in all: a weight is then negatives / positives.

    Raises:
        ConfigError: a class has no example (or of several labels, no negative).
    """
    for count, name in zip(counts, names, strict=True):
        if count <= 0 or (total is not None and count >= total):
            what = "no training example" if count <= 0 else "no training example without it"
            raise wrong_value("task.class_weights", BALANCED, f"class {name!r} has {what}; give numbers, or more data")
    if total is not None:
        return [(total - count) / count for count in counts]
    return [sum(counts) / (len(counts) * count) for count in counts]


def counts_of(data: Any) -> tuple[list[int], int | None]:
    """Training examples of each class of a data module, and of several labels how many examples there are.

    Raises:
        ConfigError: the data module counts no classes.
    """
    if not hasattr(data, "class_counts"):
        raise wrong_value(
            "task.class_weights", BALANCED, f"{type(data).__name__} has no class_counts(); give a number for each class"
        )
    counts, total = data.class_counts()
    return [int(count) for count in counts], None if total is None else int(total)
