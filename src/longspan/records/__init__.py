"""The record of a run: ``record.json``, its schema, and the callback that writes it.

Reading records needs pydantic alone; :class:`RecordWriter` and the W&B setup load Lightning on first use, so that
a report over many records starts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longspan.records.schema import SCHEMA_VERSION, Accuracy, Measure, Record

if TYPE_CHECKING:
    from longspan.records.mlflow_run import mlflow_logger
    from longspan.records.wandb_axes import setup_wandb, wandb_logger
    from longspan.records.writer import RecordWriter

__all__ = [
    "SCHEMA_VERSION",
    "Accuracy",
    "Measure",
    "Record",
    "RecordWriter",
    "mlflow_logger",
    "setup_wandb",
    "wandb_logger",
]


def __getattr__(name: str) -> Any:
    if name == "RecordWriter":
        from longspan.records.writer import RecordWriter

        return RecordWriter
    if name == "mlflow_logger":
        from longspan.records.mlflow_run import mlflow_logger

        return mlflow_logger
    if name in ("setup_wandb", "wandb_logger"):
        from longspan.records import wandb_axes

        return getattr(wandb_axes, name)
    raise AttributeError(f"module 'longspan.records' has no attribute {name!r}; its public names are {__all__}")
