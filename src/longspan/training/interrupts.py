"""Ctrl-C and SIGTERM: the batch in hand is finished, a checkpoint is saved, then the run ends."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging

log = logging.getLogger(__name__)


class SaveOnInterrupt(pl.Callback):
    """Ends a fit after the batch in hand on the first Ctrl-C, and saves `interrupted.ckpt`; at once on the second.

    After a batch the weights, the optimizer and the place in the data agree, so that `ckpt_path=` goes on exactly;
    inside one they do not, and nothing is saved. SIGTERM is Lightning's: it too ends after a batch, and is saved here.
    A run that fails for another reason saves nothing: its last good checkpoint stands.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / "interrupted.ckpt"
        self._asked = False
        self._between_batches = False
        self._previous: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        log.warning("Stopping after this batch (Ctrl-C again: at once) ...")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._between_batches = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._between_batches = True
        if self._asked:
            raise KeyboardInterrupt

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # averaged weights stand in for the trained ones until validation ends: a checkpoint would mix them up
        if self._asked and not any(isinstance(other, WeightAveraging) for other in trainer.callbacks):  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()
        if isinstance(exception, KeyboardInterrupt | SystemExit) and self._between_batches:
            trainer.save_checkpoint(self.path)
            log.warning(f"Saved {self.path}; go on with ckpt_path={self.path}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous)
        self._previous = None
