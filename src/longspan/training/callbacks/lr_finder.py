"""Lightning's learning rate finder, of whose rate the run's schedule takes notice."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateFinder

log = logging.getLogger(__name__)


class FindLearningRate(LearningRateFinder):
    """Before a new run, raises the rate from batch to batch, and trains with the one where the loss falls fastest.

    Lightning sets the optimizer's rate, which a schedule writes over at its next step; here the schedule starts from it.
    Parameters with a rate of their own (learned patterns) keep it. A resumed run has its rate and looks for none.

    Args:
        min_lr, max_lr: where the search begins and ends.
        num_training_steps: batches of the search.
        early_stop_threshold: ends it where the loss is this many times its best; None never does.
    """

    def __init__(
        self,
        min_lr: float = 1e-6,
        max_lr: float = 1.0,
        num_training_steps: int = 100,
        early_stop_threshold: float | None = 4.0,
    ) -> None:
        super().__init__(min_lr, max_lr, num_training_steps, early_stop_threshold=early_stop_threshold)
        self.found: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is None:
            super().on_fit_start(trainer, pl_module)

    def lr_find(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task: Any = pl_module
        given = float(task.lr)
        before = [[(group["lr"], group["initial_lr"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        super().lr_find(trainer, pl_module)
        self.found = None if self.optimal_lr is None else self.optimal_lr.suggestion()
        if self.found is None:
            log.warning("callbacks.lr_finder: no rate stands out; training with optimizer.lr=%s", given)
            task.lr = given
        else:
            log.warning("callbacks.lr_finder: training with a learning rate of %.3g, not optimizer.lr=%s", self.found, given)
        ratio = (self.found or given) / given
        for optimizer, groups in zip(trainer.optimizers, before, strict=True):
            for group, (rate, initial) in zip(optimizer.param_groups, groups, strict=True):
                own = initial != given
                group["lr"], group["initial_lr"] = (rate, initial) if own else (rate * ratio, initial * ratio)
        for entry in trainer.lr_scheduler_configs:
            scheduler: Any = entry.scheduler
            scheduler.base_lrs = [group["initial_lr"] for group in scheduler.optimizer.param_groups]

    def record_extra(self) -> dict[str, Any]:
        return {} if self.found is None else {"learning_rate_found": self.found}
