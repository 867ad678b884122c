"""`longspan.load`: a trained model from a checkpoint, a run's folder, or a folder of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from longspan.config.checks import check_targets
from longspan.config.errors import CheckpointError, ConfigError
from longspan.config.reachable import checkpoint_file
from longspan.data.base import SequenceDataModule
from longspan.data.files import files_may_be_gone
from longspan.inference import pretrained
from longspan.inference.trained_model import TrainedModel
from longspan.training.assemble import task_of
from longspan.training.build import build
from longspan.training.callbacks.checkpoint_config import VOCABULARIES, config_and_facts, load_checkpoint, with_vocabularies


def load(checkpoint: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """The model of a run, ready to predict; reads no data and needs none of the run's files but the checkpoint.

    Args:
        checkpoint: a `.ckpt` file of a run; a run's folder, of which the best checkpoint is taken, or the last where no best
            one was kept; or a folder that `save_pretrained` wrote.
        device: where to put the model.

    Raises:
        CheckpointError: it is not there, is damaged, is no checkpoint of this project, or names code that `conf/` does not.
        ConfigError: a device that this machine lacks.
    """
    device = _device(device)
    path = Path(checkpoint).expanduser()
    if path.is_dir() and (path / pretrained.CONFIG_FILE).is_file():
        return assembled(*pretrained.read(path), str(checkpoint)).to(device)
    file = checkpoint_file("checkpoint", path)
    saved = load_checkpoint(file)
    states = saved.get(VOCABULARIES)
    model = assembled(*config_and_facts(saved, file), saved["state_dict"], states, str(checkpoint)).to(device)
    model.record = _record_of(file)
    return model


def assembled(
    config: Mapping[str, Any], facts: Mapping[str, Any], weights: dict[str, Any], vocabularies: Any, where: str
) -> TrainedModel:
    """The model that a checked config describes, with its weights and the vocabularies that were kept with them."""
    config = {**config, "data": {**config["data"]}}
    if "class_names" in config["data"] and config["data"]["class_names"] is None:
        config["data"]["class_names"] = facts.get("class_names")
    check_targets(OmegaConf.create({key: config[key] for key in ("data", "model", "task", "attention")}))
    task: Any = task_of(config, facts)
    state = {"state_dict": pretrained.with_shared(weights, task.state_dict())}
    task.on_load_checkpoint(state)
    try:
        task.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint={where} does not fit its own config: {error}") from error
    with files_may_be_gone():
        data = build(with_vocabularies(config, vocabularies, f"checkpoint={where}"), "data")
    if isinstance(data, SequenceDataModule):
        data.take_facts(facts)
    task.attach(data)
    return TrainedModel(task, config, facts, data)


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):  # whatever torch says of a device it lacks
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise ConfigError(f"device={device} is no device of this machine; give {' or '.join(there)}") from None
    return found


def _record_of(file: Path) -> dict[str, Any] | None:
    """The record of the run that wrote a checkpoint, where it stands in the run's folder still."""
    try:
        found = json.loads((file.absolute().parents[1] / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, IndexError):
        return None
    return found if isinstance(found, dict) else None
