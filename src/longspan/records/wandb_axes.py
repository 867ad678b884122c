"""Weights & Biases with accuracy drawn over cost: the logger, its axes, and what a run leaves at its end.

Offline is the default: nothing is contacted, also not W&B's own error reports, and ``wandb sync DIR`` uploads the run later.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from longspan.config.errors import ConfigError
from longspan.records.atomic import write_text
from longspan.records.schema import Record

log = logging.getLogger(__name__)

MODES = ("offline", "online", "disabled")
COST_AXIS = "cost/total_flops"
SCATTER = "summary/accuracy_against_cost"


def wandb_logger(save_dir: str | Path, *, mode: str = "offline", id: str | None = None, **settings: Any) -> WandbLogger:
    """Lightning's W&B logger for a run that writes under `save_dir`.

    The run's id is kept in ``<save_dir>/wandb_run_id``: a run that is resumed in the same folder goes on in the same
    W&B run. `settings` go to ``wandb.init`` (project, name, group, tags, notes, entity, job_type).

    Raises:
        ConfigError: `mode` is not offline, online or disabled; or it is online and nobody is logged in.
    """
    if mode not in MODES:
        raise ConfigError(f"logger.wandb.mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if mode != "online":
        keep_silent()
    else:
        log_in("logger.wandb.mode=online", "logger.wandb.mode=offline")
    import wandb

    folder = Path(save_dir)
    # wandb falls back to the system's temporary folder where this one does not exist
    folder.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        save_dir=folder,
        id=id or _kept_id(folder),
        mode=mode,
        # without a server to link to, wandb's own summary only buries the run's closing table
        settings=wandb.Settings(silent=mode != "online", console="off" if mode != "online" else "auto"),
        **settings,
    )
    # Lightning always hands it on, and newer releases of wandb warn of it in every run
    logger._wandb_init.pop("anonymous", None)
    return logger


@rank_zero_only
def log_in(asked: str, instead: str) -> None:
    """Takes the key of W&B that this machine has; before anything else is done, as nothing can be logged without one.

    Raises:
        ConfigError: there is none. `asked` is what needs it, `instead` what does not.
    """
    import wandb

    try:
        wandb.login()
    except wandb.errors.Error as error:
        fix = f"log in with `wandb login` or set WANDB_API_KEY; {instead} keeps the run here, for `wandb sync`"
        raise ConfigError(f"{asked}: W&B cannot be logged in to ({str(error).splitlines()[0]}); {fix}") from error


def keep_silent() -> None:
    """Switches off W&B's error reports and telemetry, which it sends in offline runs too; a user's own setting stays.

    It reads the variable when it is imported and when it starts its service, so call this before either.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def _kept_id(folder: Path) -> str:
    """The id of an earlier run in this folder, else a new one, written down by rank zero."""
    kept = folder / "wandb_run_id"
    if kept.is_file() and (known := kept.read_text(encoding="utf-8").strip()):
        return known
    new = secrets.token_hex(4)
    rank_zero_only(write_text)(kept, new + "\n")
    return new


@rank_zero_only
def setup_wandb(loggers: Iterable[Logger]) -> list[WandbLogger]:
    """Give every ``accuracy/*`` the FLOPs spent as its x-axis; returns the W&B loggers among `loggers`."""
    found = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    for logger in found:
        run = logger.experiment
        run.define_metric(COST_AXIS)
        run.define_metric("accuracy/*", step_metric=COST_AXIS, step_sync=True)
    return found


@rank_zero_only
def finish_wandb(loggers: Iterable[WandbLogger], record: Record) -> None:
    """Leave the record's figures as the run's summary and a scatter of accuracy against cost, then close the run.

    One point a run: W&B lays the points of all selected runs into one picture. A failure here is logged and no more,
    for it must not hide what ended the run.
    """
    for logger in loggers:
        try:
            run = logger.experiment
            run.summary.update(_summary(record))
            scatter = _scatter(record)
            if scatter is not None:
                run.log({SCATTER: scatter})
        except Exception as error:
            log.warning("The summary of the W&B run could not be written: %s", error)
        finally:
            _finish(logger, exit_code=0 if record.status == "complete" else 1)


def _finish(logger: WandbLogger, exit_code: int) -> None:
    try:
        logger.experiment.finish(exit_code=exit_code)
    except Exception as error:
        log.warning("The W&B run could not be closed: %s", error)
    # the next experiment of this process must not go on in a closed run
    logger._experiment = None


def _summary(record: Record) -> dict[str, Any]:
    figures: dict[str, Any] = {"status": record.status, "variant": record.variant_name}
    for name, accuracy in record.accuracy.items():
        figures[f"final/{name}"] = accuracy.value
        figures[f"baseline/{name}"] = accuracy.baseline
    for name, measure in record.cost.items():
        figures[f"cost/{name}"] = measure.value
    return {name: value for name, value in figures.items() if value is not None}


def _scatter(record: Record) -> Any:
    """Total FLOPs against the first metric, with the variant's name and seed beside it; None without both figures."""
    import wandb

    metric = next((name for name, accuracy in record.accuracy.items() if accuracy.value is not None), None)
    flops = record.cost.get("total_flops")
    if metric is None or flops is None or flops.value is None:
        return None
    table = wandb.Table(
        columns=["variant", "seed", "total_flops", metric],
        data=[[record.variant_name, record.seed, float(flops.value), record.accuracy[metric].value]],
    )
    return wandb.plot.scatter(table, "total_flops", metric, title=f"{metric} against cost")
