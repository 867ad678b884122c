"""Lightning's MLflow logger, which contacts only a tracking server that the user names, and keeps one run over a resume."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from longspan.config.errors import ConfigError
from longspan.records.atomic import write_text

KEPT = "mlflow_run_id"


def mlflow_logger(
    save_dir: str | Path, *, tracking_uri: str | None = None, run_id: str | None = None, **settings: Any
) -> MLFlowLogger:
    """The MLflow logger of a run that writes under `save_dir`.

    The id of the MLflow run is kept in ``<save_dir>/mlflow_run_id``, so that a resumed run goes on in it.

    Args:
        tracking_uri: None takes MLFLOW_TRACKING_URI, or else ``mlflow.db``, a SQLite file, in the current folder.
        settings: see Lightning's ``MLFlowLogger``: experiment_name, run_name, tags, ...

    Raises:
        ConfigError: mlflow is not installed.
    """
    # MLflow sends usage figures unless told not to before it is imported; a user's own setting stays
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for noisy in ("mlflow", "alembic"):  # each step of making the tables of a new file
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    try:
        return MLFlowLogger(tracking_uri=uri, run_id=run_id or _kept(Path(save_dir) / KEPT, uri), **settings)
    except ModuleNotFoundError as error:
        raise ConfigError("logger=mlflow needs MLflow: pip install 'longspan[mlflow]'") from error


@rank_zero_only
def keep_run(logger: MLFlowLogger, folder: Path) -> None:
    """Begins the MLflow run, where that has not happened, and writes its id down."""
    write_text(folder / KEPT, f"{logger.run_id} {logger._tracking_uri}\n")


def _kept(file: Path, uri: str) -> str | None:
    """The id of an earlier run of this folder, on the same server."""
    if not file.is_file():
        return None
    known, _, where = file.read_text(encoding="utf-8").strip().partition(" ")
    return known if where == uri else None
