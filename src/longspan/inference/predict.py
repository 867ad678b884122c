"""A checkpoint's predictions for a user's own files."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import lightning.pytorch as pl

from longspan.config.errors import ConfigError
from longspan.inference.prediction_files import PredictionFile, Rows, rows_for
from longspan.inference.rebuild import rebuild
from longspan.records.writer import asking_signals


class WritePredictions(pl.Callback):
    """Writes each batch's rows as it comes, so that a genome's labels need not fit in memory."""

    def __init__(self, file: PredictionFile, rows: Rows, stop: StopAfterBatch) -> None:
        self.file, self.rows, self.stop = file, rows, stop

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.file.write(self.rows.add(outputs))
        self.stop.batch_ended()

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.stop.in_batch = True

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.listen()  # again: Lightning has put its own handler in place, which ends a training only

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.file.write(self.rows.end())


class StopAfterBatch:
    """Ends the process after the batch in hand where a signal asks for it; the second time at once."""

    def __init__(self) -> None:
        self.in_batch = False
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopAfterBatch:
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def listen(self) -> None:
        """Takes the signals; what handled them before the first call gets them back at the end."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *asking_signals()):
                self._before.setdefault(number, signal.signal(number, self._on_signal))

    def batch_ended(self) -> None:
        self.in_batch = False
        if self.asked is not None:
            raise SystemExit(128 + self.asked)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked is not None, number
        if again or not self.in_batch:
            raise SystemExit(128 + number)


def predict(checkpoint: str, words: Sequence[str], conf: Path, output: str) -> int:
    """Writes predictions for the files of `data.path` to `output`, batch by batch, and returns how many rows.

    Ctrl-C, SIGTERM and SIGHUP end it after the batch in hand; the rows so far stay, all of them whole.

    Raises:
        ConfigError: no `data.path`, or an output of an unknown kind.
    """
    file = PredictionFile(output)
    run = rebuild(checkpoint, words, conf)
    data = run.config["data"]
    if "path" not in data:
        name = str(data.get("_target_")).rpartition(".")[2]
        raise ConfigError(f"data: the checkpoint's data ({name}) are made up; there are no files of it to predict on")
    if not data.get("path"):
        raise ConfigError("data.path=... must be given: the files to predict on")
    with StopAfterBatch() as stop, file, _said(file, stop):
        trainer = run.trainer([WritePredictions(file, rows_for(run.task), stop)])
        run.datamodule.setup("predict")
        trainer.predict(run.task, dataloaders=run.datamodule.predict_dataloader(), return_predictions=False)
    return file.rows


@contextlib.contextmanager
def _said(file: PredictionFile, stop: StopAfterBatch) -> Iterator[None]:
    """Tells how far it came where a signal ended it."""
    try:
        yield
    except SystemExit:
        if stop.asked is not None:
            name = signal.Signals(stop.asked).name
            print(f"{name} received: stopped after {file.rows} whole rows, in {file.path}", file=sys.stderr)
        raise
