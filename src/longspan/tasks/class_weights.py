"""Weights of classes in the loss: given, or balanced by the training data when training begins.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longspan.tasks.class_loss import BALANCED, balanced_weights, counts_of
from longspan.tasks.classes import checked_weights


class WeighsClasses:
    """A task whose loss weighs classes: call `weigh_classes` once the module is made.

    Balanced weights are a buffer, so that a checkpoint has those that it was trained with.
    """

    class_names: list[str]
    num_classes: int
    multi_label: bool = False
    class_weights: Tensor | None

    def weigh_classes(self, given: Sequence[float] | str | None) -> None:
        """Takes weights [K], "balanced", or None.

        Raises:
            ConfigError: see `checked_weights`.
        """
        weights = checked_weights(given, self.num_classes)
        self._balanced = weights == BALANCED
        values = None if weights is None else torch.ones(self.num_classes) if self._balanced else torch.tensor(weights)
        self.register_buffer("class_weights", values, persistent=self._balanced)  # type: ignore[attr-defined]

    def on_fit_start(self: Any) -> None:
        """Counts the classes of the training data, on every rank alike."""
        super().on_fit_start()  # type: ignore[misc]
        if self._balanced and self.trainer.datamodule is not None:
            counts, total = counts_of(self.trainer.datamodule)
            self.class_weights.copy_(torch.tensor(balanced_weights(counts, self.class_names, total=total)))
