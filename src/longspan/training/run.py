"""One run from its resolved config to its record: build, fit, test the best checkpoint, print the table."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf

from longspan.config.checks import check_machine, check_targets
from longspan.config.errors import CheckpointError
from longspan.models import WarmStart, warm_start
from longspan.records import RecordWriter
from longspan.report import print_summary
from longspan.training.assemble import assemble
from longspan.training.build import always, build_callbacks, build_named, build_trainer, check_monitors
from longspan.training.callbacks.checkpoint_config import load_weights
from longspan.training.checkpoint_files import damage
from longspan.training.console import quiet_libraries
from longspan.training.fitting_checkpoint import check_goes_on, fitting_checkpoint
from longspan.training.launched import check_world, own_folder
from longspan.training.overview import overview, show_overview
from longspan.training.resume import keep_logs, resume_from
from longspan.training.seeding import seed_run
from longspan.training.step_size import check_memory, devices_here, sized, step_size

log = logging.getLogger(__name__)


def run(config: dict[str, Any]) -> float | None:
    """Trains and tests; leaves checkpoints, logs and `record.json` under `config["output_dir"]`, however it ends.

    Args:
        config: the composed config as plain containers (see `resolved_config`).

    Returns:
        The primary metric at the end, which is what a sweep optimises; None where there is none.

    Raises:
        ConfigError: another process writes to the same folder.
    """
    output_dir = Path(config["output_dir"])
    with own_folder(output_dir):
        return _run(config, output_dir)


def _run(config: dict[str, Any], output_dir: Path) -> float | None:
    record = RecordWriter(
        output_dir / "record.json",
        config=config,
        variant=config["attention_name"],
        name=config["name"],
        group=config["group"],
    )
    with record:
        conf = OmegaConf.create(config)
        check_machine(conf)
        check_targets(conf)
        check_world(devices_here(config["trainer"]), config["trainer"]["num_nodes"])
        size = step_size(config)
        check_memory(config, size)
        here = sized(config, size)
        resume = resume_from(config)
        check_goes_on(resume, config)
        keep_logs(output_dir)
        quiet_libraries()
        seed_run(config["seed"])
        datamodule, task, facts = assemble(here)
        if config["init_from"] and resume is None:  # what is resumed has weights of its own
            log.info("init_from=%s\n%s", config["init_from"], _started_from(task, config["init_from"]))
        loggers = build_named(here, "logger")
        vocabularies: dict[str, Any] = getattr(datamodule, "stored_vocabularies", dict)()
        callbacks = [*always(config, facts, size, vocabularies), *build_callbacks(here, loggers), record]
        check_monitors(callbacks, task)
        trainer = build_trainer(here, callbacks, loggers)
        show_overview(overview(here, size, datamodule, task, trainer, resume), config["name"])
        with fitting_checkpoint(resume, config):
            trainer.fit(task, datamodule, ckpt_path=resume, weights_only=True)
        if config["test"]:
            trainer.test(task, datamodule, ckpt_path=best_checkpoint(trainer), weights_only=True, verbose=False)
    if trainer.is_global_zero and record.record is not None:
        print_summary(record.record)
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # NCCL and gloo want their threads ended before the process is
    return _primary(task, record)


def best_checkpoint(trainer: pl.Trainer) -> str | None:
    """The checkpoint with the best validation figure, or None (the weights as they are) where none was saved, or a damaged
    one: torch loads that without a word, and the test would be of noise."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not path or not Path(path).is_file():
        return None
    wrong = damage(path)
    if wrong is not None:
        log.warning("%s is damaged (%s); testing the weights at the end of training", path, wrong)
    return path if wrong is None else None


def _started_from(task: pl.LightningModule, path: str) -> WarmStart:
    weights = load_weights(path, key="init_from")
    try:
        return warm_start(task, weights)
    except CheckpointError as error:
        raise CheckpointError(f"init_from={path}: {error}") from error


def _primary(task: pl.LightningModule, record: RecordWriter) -> float | None:
    metric = record.accuracy.get(str(getattr(task, "primary_metric", "")))
    return None if metric is None or metric.value is None else float(metric.value)
