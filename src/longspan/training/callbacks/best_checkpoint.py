"""Keeps the checkpoint that is best by the task's own metric, whatever the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from longspan.records.ranking import better, tied

_LOSS = "val/loss"


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint that, without a `monitor`, takes ``val/<task.primary_metric>`` and its direction.

    With ``save_last`` the last checkpoint is of every validation and of the end of training. Lightning's own is written
    only together with one that is among the best, so that a resumed run would go back to wherever it was best.

    Of equal figures, which a few held-out sequences give often, the one with less validation loss is kept where one is.

    Args:
        monitor: a logged name; None asks the task. With a name, `mode` counts as usual.
        settings: those of ``lightning.pytorch.callbacks.ModelCheckpoint``.
    """

    def __init__(self, monitor: str | None = None, **settings: Any) -> None:
        super().__init__(monitor=monitor, **settings)
        self._loss: float | None = None  # the validation loss of the kept one

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # before Lightning restores a checkpoint: the name of this callback's state there holds the metric's name
        metric = getattr(pl_module, "primary_metric", None)
        if self.monitor is None and metric is not None:
            self.monitor = f"val/{metric}"
            self.mode = "max" if pl_module.metrics_info[metric] else "min"  # type: ignore[index, operator]
            self.kth_value = torch.tensor(float("-inf") if self.mode == "max" else float("inf"))
        super().setup(trainer, pl_module, stage)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Of figures that differ by rounding alone the earlier one stays, unless the later one's loss is less."""
        if current is not None and 0 < self.save_top_k <= len(self.best_k_models):
            worst = self.best_k_models[self.kth_best_model_path]
            if tied(float(current), float(worst)):
                return self.save_top_k == 1 and self._has_less_loss(trainer)
        return super().check_monitor_top_k(trainer, current)

    def _has_less_loss(self, trainer: pl.Trainer) -> bool:
        loss = None if self._loss is None else trainer.callback_metrics.get(_LOSS)
        return loss is not None and self._loss is not None and better(float(loss), self._loss, False)

    def _update_best_and_save(
        self, current: torch.Tensor, trainer: pl.Trainer, monitor_candidates: dict[str, torch.Tensor]
    ) -> None:
        loss = monitor_candidates.get(_LOSS)
        self._loss = None if loss is None else float(loss)  # before it is saved, as the checkpoint holds it
        super()._update_best_and_save(current, trainer, monitor_candidates)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "loss": self._loss}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._catch_up(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._catch_up(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._catch_up(trainer)

    def _catch_up(self, trainer: pl.Trainer) -> None:
        """Write the last checkpoint unless one of this step is there."""
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # a resumed run writes to a folder of its own, for which Lightning would forget how good the best one was
        if Path(state_dict.get("best_model_path") or "").is_file():
            state_dict = {**state_dict, "dirpath": self.dirpath}
            self._loss = state_dict.get("loss")
        super().load_state_dict(state_dict)
