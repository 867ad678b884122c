"""Ctrl-C, SIGTERM, a closed terminal, a scheduler's warning: the step is finished, a checkpoint saved, then the run ends."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException

from longspan.training.launched import requeue

log = logging.getLogger(__name__)

# SIGUSR1 is what `sbatch --signal=USR1@90` sends some time before the end, SIGHUP what a closed terminal leaves behind
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class SaveOnInterrupt(pl.Callback):
    """Ends a fit after an optimizer step where a signal asks for it, and saves `interrupted.ckpt`.

    After a step the weights, the optimizer and the place in the data agree, and no gradient is half accumulated, so that
    `ckpt_path=` goes on exactly. All ranks end after the same step, whichever was asked. The second Ctrl-C or SIGTERM
    ends the process at once, and nothing is saved then; nor by a run that fails: its last good checkpoint stands. On SLURM
    a job that was not cancelled is put back in the queue, unless Ctrl-C ended it.

    Lightning's handler is not used for several ranks: it talks to the other ranks from within the signal, in the middle
    of whatever they are exchanging, and each rank then ends at a step of its own.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / "interrupted.ckpt"
        self._trainer: pl.Trainer | None = None
        self._previous: dict[int, Any] = {}
        self._asked: int | None = None
        self._agreed = False

    # -- being asked ---------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not earlier: Lightning puts its own handlers in between on_fit_start and this
        if threading.current_thread() is not threading.main_thread():
            return
        self._trainer, self._asked, self._agreed = trainer, None, False
        before = getattr(trainer._signal_connector, "_original_handlers", {})
        for number in ASKING:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # as nohup asks for
            now = signal.signal(number, self._on_signal)
            # Lightning's own SIGTERM handler is left out, not whoever was there before it
            self._previous[number] = before.get(number, now)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        again, self._asked = self._asked is not None, number
        previous = self._previous.get(signal.SIGTERM)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)  # the run's record takes note; it ends the process the second time
        elif again:
            raise SystemExit(128 + number)
        if number == signal.SIGINT:
            log.warning("Stopping after this step (Ctrl-C again: at once) ...")
        trainer = self._trainer
        if trainer is not None and trainer.world_size == 1 and trainer.validating:
            self._end(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        asked = self._asked is not None
        if trainer.world_size > 1:
            flag = torch.tensor(int(asked), device=trainer.strategy.root_device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        if asked and trainer.world_size > 1 and loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._agreed = True  # ranks may have unequally many batches to validate, and would end inside at different ones
        elif asked:
            self._end(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._agreed:
            self._end(trainer)

    @staticmethod
    def _end(trainer: pl.Trainer) -> None:
        """Lightning looks at this after every batch, and raises SIGTERMException."""
        trainer._signal_connector.received_sigterm = True

    # -- ending --------------------------------------------------------------------------------------------------

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
        if trainer.is_global_zero:
            log.warning("Saved %s; go on with ckpt_path=%s", self.path, self.path)
            if self._asked != signal.SIGINT and (said := requeue()) is not None:
                log.warning(said)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous = {}
