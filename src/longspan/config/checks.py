"""Checks a config before anything is built, so that a wrong one costs a second and not an epoch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from longspan.config.errors import ConfigError
from longspan.config.values import HYDRA_KEYS
from longspan.nearest import did_you_mean, listed, nearest
from longspan.parameters import parameters
from longspan.values import is_whole


def check_config(config: DictConfig, *, multirun: bool = False) -> None:
    """Raises ConfigError for what needs no torch to see: a sweep given to a single run, or in one process over devices."""
    if config.get("sweep") is not None:
        raise ConfigError("sweep=NAME is many runs, train.py does one: python scripts/sweep.py sweep=NAME")
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if multirun and _several(devices, nodes):
        asked = f"trainer.devices={devices}" if _several(devices, 1) else f"trainer.num_nodes={nodes}"
        raise ConfigError(
            f"{asked} with --multirun: the ranks of each job would replay the sweep and train different settings. Use "
            f"{asked.partition('=')[0]}=1, or scripts/sweep.py, which starts each job as a process of its own with its own "
            "devices."
        )


def _several(devices: Any, nodes: Any) -> bool:
    if isinstance(nodes, int) and nodes > 1:
        return True
    if OmegaConf.is_list(devices):
        return len(devices) > 1
    if isinstance(devices, str):
        if "," in devices:
            return len([part for part in devices.split(",") if part.strip()]) > 1
        return devices == "auto" or (devices.lstrip("-").isdigit() and int(devices) not in (0, 1))
    return devices not in (None, 0, 1)


def check_steps(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a `tokens_per_step` that is no whole number of sequences, where devices are a number."""
    trainer = config["trainer"]
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if config.get("tokens_per_step") is not None and isinstance(devices, int) and devices > 0 and isinstance(nodes, int):
        accumulated = trainer.get("accumulate_grad_batches") or 1
        check_tokens(config["tokens_per_step"], devices * nodes, config["data"]["max_length"], accumulated)


def check_tokens(tokens: Any, devices: int, length: int, accumulated: int) -> None:
    """Raises ConfigError where `tokens_per_step` is not whole sequences for every device."""
    unit = devices * length
    if not is_whole(tokens, unit) or tokens % unit:
        below = max(unit, int(tokens) // unit * unit) if isinstance(tokens, (int, float)) else unit
        raise ConfigError(
            f"tokens_per_step={tokens} is not a whole number of sequences of data.max_length={length} tokens for each of "
            f"{devices} device(s): give a multiple of {unit}, such as {below} or {below + unit}"
        )
    if accumulated != 1:
        raise ConfigError(
            f"trainer.accumulate_grad_batches={accumulated} with tokens_per_step={tokens}: accumulation follows from "
            "tokens_per_step; leave it 1, or set tokens_per_step=null"
        )


def check_machine(config: DictConfig) -> None:
    """Raises ConfigError where the machine lacks what `trainer` asks for."""
    import torch

    accelerator = str(config.trainer.get("accelerator", "auto"))
    if accelerator in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(
                f"trainer.accelerator={accelerator} but torch {torch.__version__} sees no GPU here. "
                "Use trainer=default for the CPU, or install a CUDA build of torch on a machine with a GPU."
            )
        devices = config.trainer.get("devices", 1)
        asked = len(devices) if OmegaConf.is_list(devices) else devices
        if isinstance(asked, int) and asked > torch.cuda.device_count():
            raise ConfigError(
                f"trainer.devices={devices} but this machine has {torch.cuda.device_count()} GPU(s). "
                f"Use trainer.devices={torch.cuda.device_count()} or fewer."
            )
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        check_processes(config.trainer.get("devices", 1), accelerator)


def check_processes(devices: Any, accelerator: str) -> None:
    """On a CPU each device is a process of its own, with the whole model in it."""
    most = max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    text = str(devices)
    if text.isdigit() and int(text) > most:
        raise ConfigError(
            f"trainer.devices={devices} with trainer.accelerator={accelerator} would start {devices} processes, this machine "
            f"has {most} cores for them. Use trainer.devices={most} or fewer; 1 uses all cores too."
        )


def check_targets(config: DictConfig) -> None:
    """Raises ConfigError where a node with a `_target_` has a key that its target does not take.

    Catches `+data.batchsize=4`, which Hydra lets through, before anything is built.
    """
    plain = OmegaConf.to_container(config, resolve=False)
    for path, node in _targets(plain, ""):
        try:
            target = get_object(node["_target_"])
        except Exception as error:
            raise ConfigError(f"{path}._target_={node['_target_']} cannot be imported: {error}") from error
        allowed = _parameters(target)
        if allowed is None:
            continue
        for key in node:
            if key not in allowed and key not in HYDRA_KEYS:
                suggestion = nearest(key, allowed)
                right = did_you_mean(f"{path}.{suggestion}" if suggestion else None)
                raise ConfigError(f"{path}.{key} is not a setting of {node['_target_']}.{right}\n  settings: {listed(allowed)}")


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")


def _parameters(target: Any) -> set[str] | None:
    """The names a call of `target` takes, or None where it takes any."""
    try:
        found = parameters(target)
    except (TypeError, ValueError):
        return None
    return None if found is None else set(found)
