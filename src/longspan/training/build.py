"""From config nodes to objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.utils import get_object
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from longspan.config.errors import ConfigError, is_explained
from longspan.nearest import did_you_mean, nearest
from longspan.training.callbacks.checkpoint_config import StoreConfig
from longspan.training.callbacks.compile_reasons import CompileReasons
from longspan.training.callbacks.device_change import KeepStepSize
from longspan.training.callbacks.interrupts import SaveOnInterrupt
from longspan.training.callbacks.random_state import RandomState
from longspan.training.checkpoint_files import WholeCheckpoints
from longspan.training.launched import on_slurm
from longspan.training.step_size import StepSize


def build(config: Mapping[str, Any], key: str) -> Any:
    """The object that the node `key` describes, or with `_partial_: true` what makes it.

    Raises:
        ConfigError: the node has no target, or its target refused the settings. What a target explains itself
            (an error type of this project) is raised as it is.
    """
    node = config[key]
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{key} has no _target_: choose one of its files, e.g. {key}=NAME")
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    try:
        return _made(plain, key)
    except (TypeError, ValueError) as error:
        if is_explained(error):
            raise
        raise ConfigError(f"{key}: {error}") from error


def _made(node: Any, path: str) -> Any:
    """Builds what a node describes, its nested nodes first.

    Unlike Hydra's `instantiate` it takes ``${...}`` as text: the config is resolved by now, and one from a checkpoint must not
    be resolved here.
    """
    if isinstance(node, (list, tuple)):
        return [_made(value, f"{path}[{index}]") for index, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    given = {key: _made(value, f"{path}.{key}") for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return given
    try:
        target = get_object(str(node["_target_"]))
    except Exception as error:  # whatever importing a module raises
        raise ConfigError(f"{path}._target_={node['_target_']} cannot be imported: {error}") from error
    if not callable(target):
        raise ConfigError(f"{path}._target_={node['_target_']} is a {type(target).__name__}, which cannot be called")
    return partial(target, **given) if node.get("_partial_") else target(**given)


def called(key: str, maker: Callable[..., Any], **arguments: Any) -> Any:
    """Calls what `build` made of a node with `_partial_: true`.

    Raises:
        ConfigError: the settings of the node `key` and the arguments do not fit the call.
    """
    try:
        return maker(**arguments)
    except TypeError as error:
        if "argument" not in str(error):
            raise  # no setting too many or too few, but a fault inside
        raise ConfigError(f"{key}: {error}") from error


def build_named(config: Mapping[str, Any], key: str) -> list[Any]:
    """The objects of a node that names several, each with its own target; a null entry is switched off."""
    nodes = config.get(key) or {}
    return [build(nodes, name) for name, node in nodes.items() if isinstance(node, Mapping) and "_target_" in node]


def build_callbacks(config: Mapping[str, Any], loggers: list[Logger]) -> list[pl.Callback]:
    """What `callbacks` names; the learning rate is watched only where there is a logger to tell."""
    built = build_named(config, "callbacks")
    return [callback for callback in built if loggers or not isinstance(callback, LearningRateMonitor)]


def check_monitors(callbacks: list[pl.Callback], task: pl.LightningModule) -> None:
    """Raises ConfigError where a callback watches a validation figure that the task does not log."""
    metrics = getattr(task, "metrics_info", None)
    if not isinstance(metrics, Mapping):
        return
    known = ["val/loss", *(f"val/{name}" for name in metrics)]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.startswith("val/") and monitor not in known:
            raise ConfigError(
                f"monitor={monitor} of {type(callback).__name__} in callbacks is no figure of this task."
                f"{did_you_mean(nearest(monitor, known))} It logs {', '.join(known)}"
            )


def always(
    config: dict[str, Any], facts: dict[str, Any], size: StepSize, vocabularies: dict[str, Any] | None = None
) -> list[pl.Callback]:
    """The callbacks that every run has, whatever `callbacks` says: resuming and evaluating rely on them."""
    found = [
        StoreConfig(config, facts, vocabularies),
        RandomState(),
        KeepStepSize(size),
        SaveOnInterrupt(Path(config["output_dir"]) / "checkpoints"),
    ]
    return [*found, CompileReasons()] if config["model"].get("compile") else found


def build_trainer(config: Mapping[str, Any], callbacks: list[pl.Callback], loggers: list[Logger]) -> pl.Trainer:
    """Lightning's Trainer; logs to nothing where no logger is given.

    Raises:
        ConfigError: what Lightning refuses.
    """
    make = build({"trainer": {**config["trainer"], "_partial_": True}}, "trainer")
    plugins: list[Any] = [WholeCheckpoints()]
    if on_slurm():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # SaveOnInterrupt does it, and from the last checkpoint
    try:
        return make(callbacks=callbacks, logger=loggers or False, plugins=plugins)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}") from error
