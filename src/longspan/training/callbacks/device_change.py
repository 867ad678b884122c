"""A run taken up on another number of devices: its place in the epoch, counted in batches of another size."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl

from longspan.training.step_size import StepSize

log = logging.getLogger(__name__)

KEY = "longspan_step"


class KeepStepSize(pl.Callback):
    """Notes in each checkpoint, and in the run's record, what a step is made of, and translates it on resuming.

    Lightning counts the batches of an epoch, each over all devices. Twice the devices means half as many batches, and
    a run resumed with the old count would believe its epoch nearly over.
    """

    def __init__(self, size: StepSize) -> None:
        self.size = size

    def record_extra(self) -> dict[str, Any]:
        return {"step": self.size.as_dict()}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.size.as_dict()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        before = checkpoint.get(KEY)
        if before is None or trainer.state.fn != "fit":
            return
        if before["sequences_per_step"] != self.size.sequences_per_step:
            log.warning(
                "The checkpoint's run took %d sequences a step, this one takes %d: set tokens_per_step to keep it.",
                before["sequences_per_step"],
                self.size.sequences_per_step,
            )
        old, new = before["devices"] * before["sequences_per_device"], self.size.sequences_per_batch
        if old == new:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for name, count in counts.items():
                counts[name] = count * old // new
