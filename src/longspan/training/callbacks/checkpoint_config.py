"""Puts the run's config, its facts of the data and trained vocabularies into each checkpoint: enough to rebuild the
task and to read texts for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from longspan.config.errors import CheckpointError
from longspan.config.from_checkpoint import check_checkpoint_config, check_weights
from longspan.config.reachable import newest_inside
from longspan.data.vocabularies import restored
from longspan.training.checkpoint_files import damage

CONFIG, FACTS, VOCABULARIES = "longspan_config", "longspan_facts", "longspan_vocabularies"


class StoreConfig(pl.Callback):
    """Puts config, facts of the data and vocabularies into every checkpoint.

    Args:
        config: plain containers only; anything else could not be loaded with `weights_only`.
        facts: see `longspan.training.assemble.data_facts`; plain too.
        vocabularies: see `SequenceDataModule.stored_vocabularies`.
    """

    def __init__(self, config: dict[str, Any], facts: dict[str, Any], vocabularies: dict[str, Any] | None = None) -> None:
        self.config, self.facts, self.vocabularies = config, facts, dict(vocabularies or {})

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG], checkpoint[FACTS] = self.config, self.facts
        if self.vocabularies:
            checkpoint[VOCABULARIES] = self.vocabularies

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint.get(VOCABULARIES, {})
        for key in {*kept, *self.vocabularies}:
            if kept.get(key) != self.vocabularies.get(key):
                raise CheckpointError(
                    f"the checkpoint was trained with another data.{key} than this run has: token numbers mean other texts. Go "
                    "on with the data and the vocabulary it was trained with"
                )


def load_checkpoint(path: str | Path, *, key: str = "checkpoint") -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Args:
        key: the config key or argument that gave the path, for messages.

    Raises:
        CheckpointError: no such file, or not a checkpoint.
    """
    checkpoint = _read(path, key)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{key}={path} holds no state_dict; give a checkpoint that train.py wrote.")
    check_tensors(checkpoint["state_dict"], f"{key}={path}")
    return checkpoint


def load_weights(path: str | Path, *, key: str) -> dict[str, Any]:
    """The weights of a checkpoint, or of a file that holds a state dict alone, under their names.

    Raises:
        CheckpointError: no such file, or no weights in it.
    """
    content = _read(path, key)
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights or not all(isinstance(one, torch.Tensor) for one in weights.values()):
        raise CheckpointError(f"{key}={path} holds no weights: neither a run's checkpoint nor a state dict")
    check_tensors(weights, f"{key}={path}")
    return weights


def _read(path: str | Path, key: str) -> Any:
    file = Path(path)
    if file.is_dir():
        raise CheckpointError(f"{key}={path} is a folder{newest_inside(file)}. Give the .ckpt file.")
    if not file.is_file():
        raise CheckpointError(f"{key}={path} does not exist. Checkpoints are in a run's folder, under checkpoints/.")
    if (wrong := damage(file)) is not None:
        raise CheckpointError(f"{key}={path} is damaged or no checkpoint ({wrong}). Give another of its folder.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{key}={path} cannot be read as a checkpoint: {said[:300]}") from error


def check_tensors(weights: Any, where: str) -> None:
    """Raises CheckpointError for weights that are larger than what the file holds of them, as an expanded tensor is."""
    if not isinstance(weights, dict):
        raise CheckpointError(f"{where} holds a state_dict that is a {type(weights).__name__}")
    for name, weight in weights.items():
        if not isinstance(weight, torch.Tensor):
            continue  # some modules keep other plain state
        if weight.layout != torch.strided or weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise CheckpointError(f"{where} holds {name} of shape {list(weight.shape)} without the values for it")


def config_and_facts(checkpoint: dict[str, Any], path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and facts of the run that wrote the checkpoint, checked: it may come from a stranger.

    Raises:
        CheckpointError: a checkpoint without them, or see `longspan.config.from_checkpoint`.
    """
    if CONFIG not in checkpoint or FACTS not in checkpoint:
        raise CheckpointError(
            f"checkpoint={path} has no config in it; give a checkpoint that train.py wrote. To one that a script of your own "
            f"wrote, hand its modules again: its task's load_from_checkpoint({str(path)!r}, model=...)."
        )
    where = f"checkpoint={path}"
    config, facts = check_checkpoint_config(checkpoint[CONFIG], where), checkpoint[FACTS]
    check_weights(config, facts, checkpoint["state_dict"], where)
    return config, dict(facts)


def with_vocabularies(config: Mapping[str, Any], states: Any, where: str) -> dict[str, Any]:
    """The config, the data's vocabularies in it replaced by those that a checkpoint keeps.

    Raises:
        CheckpointError: what it keeps makes no vocabulary.
    """
    if states is None:
        return dict(config)
    if not isinstance(states, Mapping) or not set(states) <= set(config["data"]):
        raise CheckpointError(f"{where} holds vocabularies that its config does not name; give a checkpoint of train.py")
    try:
        known = {key: restored(one, where) for key, one in states.items()}
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return {**config, "data": {**config["data"], **known}}
