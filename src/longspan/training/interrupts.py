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
from lightning.pytorch.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)


class SaveOnInterrupt(pl.Callback):
    """Takes the first Ctrl-C of a fit as a SIGTERM, and saves `interrupted.ckpt` when one has ended it.

    Lightning ends a fit on SIGTERM after a batch, where the weights, the optimizer and the place in the data agree, so
    that `ckpt_path=` goes on exactly. The second Ctrl-C ends it at once, inside a batch, and nothing is saved then;
    nor by a run that fails: its last good checkpoint stands.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / "interrupted.ckpt"
        self._previous: Any = None
        self._asked = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._asked = False
            self._previous = signal.signal(signal.SIGINT, self._on_ctrl_c)

    def _on_ctrl_c(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        log.warning("Stopping after this batch (Ctrl-C again: at once) ...")
        signal.raise_signal(signal.SIGTERM)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()
        if not isinstance(exception, SIGTERMException):
            return
        if trainer.validating:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                # the averaged weights stand in for the trained ones until validation ends
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
        trainer.save_checkpoint(self.path)
        log.warning("Saved %s; go on with ckpt_path=%s", self.path, self.path)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous)
        self._previous = None
