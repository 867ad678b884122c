"""Writes ``record.json`` while a run is alive and when it ends, however it ends.

How ``train.py`` uses it, as the outermost context, so that a run that never reaches training leaves a record too::

    with RecordWriter(path=output_dir / "record.json", config=OmegaConf.to_container(cfg, resolve=True),
                      variant=choices["attention"]) as record:
        datamodule, model, task = ...
        trainer = Trainer(callbacks=[*callbacks, record], logger=loggers)
        trainer.fit(task, datamodule)
        trainer.test(task, datamodule)
    print_summary(record.record)

It never swallows an exception. W&B runs among the trainer's loggers get their axes at the start and are finished on
the way out, with the record's figures as their summary; train.py need not do either.

What it takes from the objects it meets, all optional: the task's ``metrics_info`` {metric: higher is better}, the data
module's ``baselines()`` (of a split, where it takes one) and ``describe()``, and from any other callback ``costs()``
{name: (value, unit)}, ``curve_points()`` {curve: value} at every `log_every_n_steps`-th step, and ``record_extra()``, a
plain dict for the record's `extra`.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from longspan.records.curves import Curves
from longspan.records.ending import describe, full_traceback, status_of
from longspan.records.environment import command_line, git_commit, hardware, versions
from longspan.records.jsonable import jsonable
from longspan.records.log_config import log_config
from longspan.records.schema import Accuracy, Measure, Record, Status
from longspan.records.wandb_axes import finish_wandb, setup_wandb

log = logging.getLogger(__name__)

STILL_RUNNING = "the run had not ended when this was written: it is still going, or was killed"


def asking_signals() -> list[int]:
    """The signals that ask a process to end: SIGTERM, and SIGHUP of a closed terminal where `nohup` does not ignore it."""
    asking = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    return [number for number in asking if signal.getsignal(number) is not signal.SIG_IGN]


class RecordWriter(Callback):
    """Lightning callback and context manager around a run; writes on rank zero only.

    On entry the record says ``interrupted``, and says so until the run ends: that is what a ``kill -9`` leaves. It is
    brought up to date at every validation and test, and at the end becomes complete, failed, interrupted or
    out_of_memory. A disk that refuses a write during the run costs a warning, not the run.

    Args:
        path: the file to write, usually ``<output dir>/record.json``. A complete record already there is kept beside
            it as ``<stem>.previous.json``.
        config: the resolved configuration as plain containers.
        command: a line that repeats the run; by default taken from Hydra's overrides or ``sys.argv``.
        seed: by default the config's ``seed``.
        variant, name, group: see :class:`longspan.records.Record`; by default the config's ``attention_name``, ``name``
            and none.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        command: str | None = None,
        seed: int | None = None,
        variant: str | None = None,
        name: str | None = None,
        group: str | None = None,
    ) -> None:
        self.path = Path(path)
        config = jsonable(config or {})
        commit, dirty = git_commit()
        self._fields: dict[str, Any] = {
            "config": config,
            "command": command if command is not None else command_line(),
            "seed": seed if seed is not None else config.get("seed"),
            "commit": commit,
            "commit_dirty": dirty,
            "versions": versions(),
            "hardware": {},
            "started": datetime.now(UTC),
            "variant": variant if variant is not None else config.get("attention_name"),
            "name": name if name is not None else config.get("name"),
            "group": group,
        }
        self.curves = Curves()
        self.accuracy: dict[str, Accuracy] = {}
        self.cost: dict[str, Measure] = {}
        self.extra: dict[str, Any] = {}
        self.record: Record | None = None
        self._wandb: list[WandbLogger] = []
        self._told = False  # the loggers know the config
        self._baselines: dict[str, dict[str, float]] = {}
        self._data: dict[str, Any] = {}
        self._begun = time.monotonic()
        self._earlier_seconds = 0.0
        self._training = False
        self._fitting = True
        self._signalled: int | None = None  # the signal that asked for the end
        self._raised: BaseException | None = None
        self._previous_handlers: dict[int, Any] = {}

    # -- the context ---------------------------------------------------------------------------------------------

    def __enter__(self) -> RecordWriter:
        self._begun = time.monotonic()
        self._fields["started"] = datetime.now(UTC)
        self._fields["hardware"] = hardware()
        self._keep_complete_record()
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in asking_signals()}
        self._write("interrupted", STILL_RUNNING)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            self._previous_handlers = {}
        if isinstance(error, SystemExit) and self._raised is not None:
            error = self._raised  # Lightning turns a KeyboardInterrupt into an exit with code 1
        status = status_of(error)
        if error is not None:
            self.extra["traceback"] = full_traceback(error)
        text = describe(error) if error is not None else None
        if self._signalled is None and _caused_by_ctrl_c(error):
            self._signalled = signal.SIGINT
        if self._signalled is not None and status != "complete":
            status, text = "interrupted", f"{signal.Signals(self._signalled).name} received\n{text}"
        self._write(status, text)
        if self.record is not None:
            finish_wandb(self._wandb, self.record)
        if status == "interrupted" and (_caused_by_ctrl_c(error) or (isinstance(error, SystemExit) and not error.code)):
            # Lightning leaves with code 0 after SIGTERM, which a scheduler would take for a finished run, and 1 after Ctrl-C
            raise SystemExit(128 + (self._signalled or signal.SIGTERM)) from error

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self._signalled = self._signalled is not None, number
        if self._training and not again:
            return  # Lightning's own handler ends the fit after this step, when a checkpoint can be written
        raise SystemExit(128 + number)

    # -- the callback --------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fitting = stage == "fit"
        self._wandb = setup_wandb(trainer.loggers) or []  # None on other ranks
        if not self._told:
            log_config(trainer.loggers, self._fields["config"], self.path.parent)
            self._told = True
        datamodule: Any = getattr(trainer, "datamodule", None)
        if hasattr(datamodule, "baselines"):
            of_split = "split" in inspect.signature(datamodule.baselines).parameters
            self._baselines = {
                split: dict(datamodule.baselines(split) if of_split else datamodule.baselines()) for split in ("val", "test")
            }
        if hasattr(datamodule, "describe"):
            self._data = jsonable(datamodule.describe(), "the data module's describe()")
        if stage == "fit":  # a new training: figures of an earlier test no longer hold
            self.accuracy = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = True
        self._collect(trainer)
        self._write("interrupted", STILL_RUNNING)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        # reading a logged value waits for the device, so only as often as Lightning itself does
        every = getattr(trainer, "log_every_n_steps", 50)
        if trainer.global_step % max(1, every) == 0:
            for name in ("train/loss", "train/loss_step"):
                if name in trainer.callback_metrics:
                    self.curves.add("train/loss", trainer.global_step, trainer.callback_metrics[name])
                    break
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "curve_points"):
                    for name, value in callback.curve_points().items():
                        self.curves.add(name, trainer.global_step, value)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._collect(trainer)
        self._judge(trainer, pl_module, "val")
        if trainer.state.fn == "fit":
            for name, value in trainer.callback_metrics.items():
                if name.startswith("val/"):
                    self.curves.add(name, trainer.global_step, value)
            for name in ("total_flops",):
                if name in self.cost:
                    self.curves.add(f"cost/{name}", trainer.global_step, self.cost[name].value)
            self.curves.add("cost/seconds", trainer.global_step, round(self.seconds, 3))
        self._write("interrupted", STILL_RUNNING)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False
        self._collect(trainer)
        self._write("interrupted", STILL_RUNNING)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._collect(trainer)
        self._judge(trainer, pl_module, "test")
        self._write("interrupted", STILL_RUNNING)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training = False
        self._raised = exception
        self._collect(trainer)
        self.extra["traceback"] = full_traceback(exception)
        self._write(status_of(exception), describe(exception))

    def state_dict(self) -> dict[str, Any]:
        """Plain containers only: checkpoints must load with ``weights_only``."""
        curves = {name: [list(point) for point in points] for name, points in self.curves.as_dict().items()}
        # a run that was killed between training and test has nothing left to measure when it is taken up again
        accuracy = {name: metric.model_dump() for name, metric in self.accuracy.items()}
        cost = {name: measure.model_dump() for name, measure in self.cost.items()}
        return {"curves": curves, "seconds": self.seconds, "accuracy": accuracy, "cost": cost}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._fitting:
            return  # the best checkpoint is loaded to be tested: what was recorded after it stands
        self.curves.load(state_dict["curves"])
        self._earlier_seconds = float(state_dict["seconds"])
        self.accuracy = {name: Accuracy(**metric) for name, metric in state_dict.get("accuracy", {}).items()}
        self.cost = {name: Measure(**measure) for name, measure in state_dict.get("cost", {}).items()}

    # -- what is written -----------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Wall time of the run, that of the runs it resumed included."""
        return self._earlier_seconds + time.monotonic() - self._begun

    def _collect(self, trainer: Trainer) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback is not self and hasattr(callback, "costs"):
                for name, (value, unit) in callback.costs().items():
                    self.cost[name] = Measure(value=value, unit=unit)
            if hasattr(callback, "record_extra"):
                self.extra.update(callback.record_extra())

    def _judge(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        self._fields["primary_metric"] = getattr(pl_module, "primary_metric", None)
        for name, higher_is_better in getattr(pl_module, "metrics_info", {}).items():
            value = trainer.callback_metrics.get(f"{split}/{name}")
            known = self.accuracy.get(name)
            if value is None or (split == "val" and known is not None and known.split == "test"):
                continue
            self.accuracy[name] = Accuracy(
                value=float(value),
                higher_is_better=higher_is_better,
                baseline=self._baselines.get(split, {}).get(name),
                split=split,
            )

    @rank_zero_only
    def _write(self, status: Status, error: str | None) -> None:
        self.record = Record(
            **self._fields,
            status=status,
            error=error,
            seconds=round(self.seconds, 3),
            accuracy=dict(self.accuracy),
            cost=dict(self.cost),
            curves=self.curves.as_dict(),
            data=self._data,
            extra=dict(self.extra),
        )
        try:
            self.record.save(self.path)
        except OSError as refused:
            log.warning("The run's record could not be written to %s: %s", self.path, refused)

    @rank_zero_only
    def _keep_complete_record(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            if Record.load(self.path).status == "complete":
                os.replace(self.path, self.path.with_name(f"{self.path.stem}.previous.json"))


def _caused_by_ctrl_c(error: BaseException | None) -> bool:
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    )
