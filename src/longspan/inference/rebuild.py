"""The task and the data of a finished run, from its checkpoint alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import OmegaConf

from longspan.config.checks import check_machine, check_targets
from longspan.config.errors import CheckpointError
from longspan.config.overrides import overridden
from longspan.config.reachable import checkpoint_file
from longspan.data.base import SequenceDataModule
from longspan.training.assemble import task_of
from longspan.training.build import build, build_trainer
from longspan.training.callbacks.checkpoint_config import VOCABULARIES, config_and_facts, load_checkpoint, with_vocabularies
from longspan.training.console import quiet_libraries
from longspan.training.seeding import seed_run

# a device that this machine may lack is no part of what a checkpoint is
HERE = {"accelerator": "auto", "devices": 1, "num_nodes": 1, "strategy": "auto"}


@dataclass(frozen=True)
class Rebuilt:
    """`facts`: what the checkpoint's task was built with: the facts of its training data."""

    config: dict[str, Any]
    facts: dict[str, Any]
    task: pl.LightningModule
    datamodule: Any

    def trainer(self, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
        """A Trainer that writes nothing: no logs, no checkpoints."""
        return build_trainer(self.config, list(callbacks), [])


def rebuild(checkpoint: str, words: Sequence[str], conf: Path) -> Rebuilt:
    """Builds the data module (not yet set up) and the task with the checkpoint's weights.

    Args:
        checkpoint: a `.ckpt` file of a run, or its folder, see `checkpoint_file`.
        words: `key=value` overrides of the checkpoint's config.
        conf: the folder of config groups, for overrides such as `trainer=gpu`.

    Raises:
        CheckpointError: not a checkpoint of ours, or weights that do not fit the overridden config.
        ConfigError: a wrong override.
    """
    file = checkpoint_file("checkpoint", checkpoint)
    saved = load_checkpoint(file)
    config, facts = config_and_facts(saved, file)
    if not any(word.startswith(("trainer=", "trainer.accelerator=", "trainer.devices=")) for word in words):
        config = {**config, "trainer": {**config["trainer"], **HERE}}
    trained = config["data"]
    config = overridden(config, words, conf)
    for key in saved.get(VOCABULARIES) or ():
        if config["data"].get(key) != trained.get(key):
            raise CheckpointError(
                f"data.{key}={config['data'].get(key)}: the checkpoint was trained with {trained.get(key)}, which it keeps; "
                f"leave data.{key} out"
            )
    config["trainer"].update(fast_dev_run=False)
    if "class_names" in config["data"] and config["data"]["class_names"] is None:
        config["data"]["class_names"] = facts.get("class_names")
    asked = OmegaConf.create(config)
    check_machine(asked)
    check_targets(asked)
    quiet_libraries()
    seed_run(config["seed"])
    task = task_of(config, facts)
    task.on_load_checkpoint(saved)
    try:
        task.load_state_dict(saved["state_dict"])
    except RuntimeError as error:
        fix = "leave out keys that change the sizes of its model"
        raise CheckpointError(f"checkpoint={checkpoint} does not fit the config it is used with; {fix} ({error})") from error
    data = build(with_vocabularies(config, saved.get(VOCABULARIES), f"checkpoint={checkpoint}"), "data")
    if isinstance(data, SequenceDataModule):
        data.take_facts(facts)
    task.attach(data)
    return Rebuilt(config, facts, task, data)
