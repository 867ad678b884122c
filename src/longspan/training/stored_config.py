"""The run's config inside each of its checkpoints: a checkpoint alone is enough to rebuild the model and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from longspan.training.errors import CheckpointError

KEY = "longspan_config"


class StoreConfig(pl.Callback):
    """Puts the plain config into every checkpoint.

    Args:
        config: plain containers only; anything else could not be loaded with `weights_only`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.config


def load_checkpoint(path: str | Path, *, key: str = "checkpoint") -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Args:
        key: the config key or argument that gave the path, for messages.

    Raises:
        CheckpointError: no such file, or not a checkpoint.
    """
    file = Path(path)
    if file.is_dir():
        found = sorted(file.rglob("*.ckpt"))
        hint = f"; it holds {found[0]}" if found else ""
        raise CheckpointError(f"{key}={path} is a folder{hint}. Give the .ckpt file.")
    if not file.is_file():
        raise CheckpointError(f"{key}={path} does not exist. Checkpoints are in a run's folder, under checkpoints/.")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{key}={path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{key}={path} holds no state_dict; give a checkpoint that train.py wrote.")
    return checkpoint


def stored_config(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The config that the run which wrote the checkpoint had.

    Raises:
        CheckpointError: a checkpoint without one.
    """
    if KEY not in checkpoint:
        raise CheckpointError(f"checkpoint={path} has no config in it; give a checkpoint that train.py wrote.")
    return checkpoint[KEY]
