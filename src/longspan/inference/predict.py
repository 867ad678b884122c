"""A checkpoint's predictions for a user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from longspan.config.errors import ConfigError
from longspan.inference.prediction_files import PredictionFile, Rows, rows_for
from longspan.inference.rebuild import rebuild


class WritePredictions(pl.Callback):
    """Writes each batch's rows as it comes, so that a genome's labels need not fit in memory."""

    def __init__(self, file: PredictionFile, rows: Rows) -> None:
        self.file, self.rows = file, rows

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for row in self.rows.add(outputs):
            self.file.write(row)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for row in self.rows.end():
            self.file.write(row)


def predict(checkpoint: str, words: Sequence[str], conf: Path, output: str) -> int:
    """Writes predictions for the files of `data.path` to `output` and returns how many rows.

    Raises:
        ConfigError: no `data.path`, or an output of an unknown kind.
    """
    file = PredictionFile(output)
    run = rebuild(checkpoint, words, conf)
    if not run.config["data"].get("path"):
        raise ConfigError("data.path=... must be given: the files to predict on")
    with file:
        trainer = run.trainer([WritePredictions(file, rows_for(run.task))])
        run.datamodule.setup("predict")
        trainer.predict(run.task, dataloaders=run.datamodule.predict_dataloader(), return_predictions=False)
    return file.rows
