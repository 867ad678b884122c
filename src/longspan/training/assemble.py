"""Data, model and task put together from the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from longspan.tasks import Task, build_task, data_facts
from longspan.training.build import build, called


def assemble(config: Mapping[str, Any]) -> tuple[pl.LightningDataModule, Task, dict[str, Any]]:
    """The data module (read), the task around a new model, and the facts of the data that the task was built with."""
    datamodule = build(config, "data")
    datamodule.prepare_data()
    datamodule.setup("fit")
    facts = data_facts(build(config, "task"), datamodule)
    task = task_of(config, facts)
    task.attach(datamodule)
    task.check_training(datamodule)
    return datamodule, task, facts


def task_of(config: Mapping[str, Any], facts: Mapping[str, Any]) -> Task:
    """The task around a new model.

    Args:
        facts: see `longspan.tasks.data_facts`; from the data, or from a checkpoint.
    """
    return called(
        "model",
        build_task,
        task=build(config, "task"),
        model=build(config, "model"),
        attention=_attention(config),
        data=facts,
        optimizer=build(config, "optimizer"),
        scheduler=build(config, "scheduler"),
    )


def _attention(config: Mapping[str, Any]) -> Any:
    """One maker of attention modules, or several by name where `attention` holds several nodes."""
    node = config["attention"]
    if "_target_" in node:
        return build(config, "attention")
    return {name: build(node, name) for name, part in node.items() if isinstance(part, Mapping)}
