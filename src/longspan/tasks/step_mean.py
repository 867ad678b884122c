"""The loss of a step as one mean over its items, however they are dealt to devices and accumulated batches.

A mean of means is another loss wherever batches hold unequally many targets, as with short rows or masked places.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor


class StepMean:
    """Turns means over batches into the gradient of the mean over the step.

    Every batch's loss goes in with its number of items; how many there are in all is known only when the optimizer is
    about to step, so that is when the gradients are scaled. Nothing is done where a step is one batch on one device.
    """

    def __init__(self) -> None:
        self._unit: Tensor | None = None  # keeps the losses of batches near 1 for half-precision gradients
        self._items: Tensor | None = None

    def share(self, loss: Tensor, count: Tensor | int, trainer: pl.Trainer) -> Tensor:
        """What to differentiate for a batch with the mean `loss` over `count` items."""
        if _parts(trainer) == 1:
            return loss
        items = torch.as_tensor(count, device=loss.device).to(torch.float32)
        if self._unit is None:
            self._unit = _over_ranks(items.clone(), trainer, torch.distributed.ReduceOp.MAX).clamp(min=1)
        self._items = items if self._items is None else self._items + items
        return loss * (items / self._unit)

    def settle(self, module: pl.LightningModule) -> None:
        """Scale the gradients, which Lightning and DDP have averaged over batches and devices."""
        if self._items is None or self._unit is None:
            return
        total = _over_ranks(self._items, module.trainer, torch.distributed.ReduceOp.SUM).clamp(min=1)
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, self._unit * _parts(module.trainer) / total)
        self._items = None


def _parts(trainer: pl.Trainer) -> int:
    return trainer.world_size * trainer.accumulate_grad_batches


def _over_ranks(value: Tensor, trainer: pl.Trainer, how: torch.distributed.ReduceOp.RedOpType) -> Tensor:
    if trainer.world_size > 1:
        torch.distributed.all_reduce(value, how)
    return value
