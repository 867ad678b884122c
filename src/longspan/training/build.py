"""From config nodes to objects: data, model, task, callbacks, loggers, trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from longspan.training.errors import ConfigError, is_explained
from longspan.training.interrupts import SaveOnInterrupt
from longspan.training.random_state import RandomState
from longspan.training.stored_config import StoreConfig


def build(config: Mapping[str, Any] | DictConfig, key: str, **arguments: Any) -> Any:
    """The object that the node `key` describes, its targets called with `arguments` beside their own keys.

    Raises:
        ConfigError: the node has no target, or its target refused the settings.
    """
    node = config[key]
    if node is None or "_target_" not in node:
        raise ConfigError(f"{key} has no _target_: choose one of its files, e.g. {key}=NAME")
    try:
        return instantiate(OmegaConf.create(OmegaConf.to_container(node) if OmegaConf.is_config(node) else node), **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if cause is not None and is_explained(cause):
            raise cause from None
        if isinstance(cause, (TypeError, ValueError)):
            raise ConfigError(f"{key} ({node['_target_']}): {cause}") from cause
        raise


def build_named(config: Mapping[str, Any], key: str) -> list[Any]:
    """The objects of a node that names several, each with its own target; a null entry is switched off."""
    nodes = config.get(key) or {}
    return [build(nodes, name) for name, node in nodes.items() if node is not None and "_target_" in node]


def always(config: dict[str, Any]) -> list[pl.Callback]:
    """The callbacks that every run has, whatever `callbacks` says: what resuming and evaluating rely on."""
    return [
        StoreConfig(config),
        RandomState(),
        SaveOnInterrupt(Path(config["output_dir"]) / "checkpoints"),
    ]


def build_trainer(config: dict[str, Any], callbacks: list[pl.Callback], loggers: list[Logger]) -> pl.Trainer:
    """Lightning's Trainer; logs to nothing where no logger is given."""
    return build(config, "trainer", callbacks=callbacks, logger=loggers or False)
