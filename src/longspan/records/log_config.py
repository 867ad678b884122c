"""Gives the run's config to the loggers that compare runs by it: W&B, TensorBoard, MLflow, and any that a user adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from longspan.records.mlflow_run import keep_run

# what says how a run is written down and shown, not what it is
LEFT_OUT = {"logger", "output_dir", "hydra"}


@rank_zero_only
def log_config(loggers: Iterable[Logger], config: Mapping[str, Any], folder: Path) -> None:
    """Logs the config as hyperparameters; a CSV has the record beside it, which holds them.

    Args:
        folder: of the run, where the id of its MLflow run is kept.
    """
    logged = {key: value for key, value in config.items() if key not in LEFT_OUT}
    for logger in loggers:
        if isinstance(logger, MLFlowLogger):
            keep_run(logger, folder)
        if not isinstance(logger, CSVLogger) and logged:
            logger.log_hyperparams(logged)
