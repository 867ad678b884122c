"""One bar over the whole training on a terminal, a line now and then in a log.

Lightning's own bars begin anew each epoch; here runs are counted in steps, and epochs may be short.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

STYLES = ("auto", "rich", "plain")
BAR_WIDTH = 20


def progress_bar(style: str = "auto", interval: float = 5.0) -> StepProgress:
    """The bar of a style: "rich" (a live bar), "plain" (lines), or "auto", by whether the output is a terminal.

    Args:
        interval: seconds between two plain lines.

    Raises:
        ValueError: another style.
    """
    if style not in STYLES:
        raise ValueError(f"callbacks.progress.style is {style!r}; it must be one of {', '.join(STYLES)}")
    if style == "auto":
        style = "rich" if Console().is_terminal else "plain"
    return LiveProgress() if style == "rich" else PlainProgress(interval)


class StepProgress(ProgressBar):
    """What both bars know: the step, the number of steps, loss, speed, and the figures of the last validation."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._begun = 0.0
        self._first_step = 0
        self._paused = 0.0
        self._pause_begun = 0.0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begun, self._paused, self._first_step = time.monotonic(), 0.0, trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pause_begun = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused += time.monotonic() - self._pause_begun

    def _seconds_a_step(self, trainer: pl.Trainer) -> float | None:
        steps = trainer.global_step - self._first_step
        return (time.monotonic() - self._begun - self._paused) / steps if steps > 0 else None

    def _speed(self, trainer: pl.Trainer) -> str:
        seconds = self._seconds_a_step(trainer)
        if seconds is None:
            return ""
        return f"{seconds:.2f} s/step" if seconds >= 1 else f"{1000 * seconds:.0f} ms/step"

    @staticmethod
    def _total(trainer: pl.Trainer) -> int | None:
        steps = trainer.estimated_stepping_batches
        return int(steps) if steps != float("inf") and steps > 0 else None

    @staticmethod
    def _loss(trainer: pl.Trainer) -> str:
        for name in ("train/loss_step", "train/loss"):
            if name in trainer.callback_metrics:
                return f"loss {float(trainer.callback_metrics[name]):.4g}"
        return ""

    @staticmethod
    def _validation(trainer: pl.Trainer) -> str:
        found = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        return "  ".join(f"{name} {value:.4g}" for name, value in found.items())


class PlainProgress(StepProgress):
    """A line every few seconds, for logs and pipes."""

    def __init__(self, interval: float = 5.0) -> None:
        super().__init__()
        self.interval = interval
        self._last_line = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        total = self._total(trainer)
        now = time.monotonic()
        if now - self._last_line < self.interval and trainer.global_step not in (self._first_step + 1, total):
            return
        if now == self._last_line:
            return
        self._last_line = now
        self.print(self._line(trainer, total))

    def _line(self, trainer: pl.Trainer, total: int | None) -> str:
        step, seconds = trainer.global_step, self._seconds_a_step(trainer)
        parts = [f"step {step}"]
        if total:
            filled = min(BAR_WIDTH, BAR_WIDTH * step // total)
            parts = [f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] step {step:>{len(str(total))}}/{total}"]
        parts += [self._loss(trainer), self._speed(trainer)]
        if total and seconds:
            parts.append(f"{timedelta(seconds=round(seconds * (total - step)))} left")
        return "  ".join(part for part in parts if part)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.print(f"validation after step {trainer.global_step}:  {self._validation(trainer)}")

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            print(*args, flush=True)


class LiveProgress(StepProgress):
    """A live bar drawn by rich; a second one comes and goes with each validation or test."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._training: Any = None
        self._evaluating: Any = None

    def _show(self) -> Progress | None:
        if self._enabled and self._progress is None:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(text_format="{task.completed:.0f}/{task.total:.0f}", show_speed=False),
                TextColumn("{task.fields[note]}", style="cyan"),
                TimeRemainingColumn(compact=True),
                expand=True,
            )
            self._progress.start()
        return self._progress

    def _hide(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._training = self._evaluating = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        progress = self._show()
        if progress is not None:
            total = self._total(trainer)
            self._training = progress.add_task("training", total=total, completed=trainer.global_step, note="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self._progress is not None and self._training is not None:
            note = "  ".join(part for part in (self._loss(trainer), self._speed(trainer)) if part)
            self._progress.update(self._training, completed=trainer.global_step, note=note)

    def _evaluation_begins(self, name: str, batches: Any) -> None:
        progress = self._show()
        if progress is not None:
            total = sum(batches) if isinstance(batches, list) else batches
            self._evaluating = progress.add_task(name, total=None if total == float("inf") else total, note="")

    def _evaluation_advances(self) -> None:
        if self._progress is not None and self._evaluating is not None:
            self._progress.advance(self._evaluating)

    def _evaluation_ends(self) -> None:
        if self._progress is not None and self._evaluating is not None:
            self._progress.remove_task(self._evaluating)
        self._evaluating = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluation_begins("validation", batches)

    def on_validation_batch_end(self, *args: Any) -> None:
        self._evaluation_advances()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._evaluation_ends()
        if self._progress is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._progress.console.print(
                f"[dim]validation after step {trainer.global_step}:[/]  {self._validation(trainer)}", highlight=False
            )

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation_begins("test", trainer.num_test_batches)

    def on_test_batch_end(self, *args: Any) -> None:
        self._evaluation_advances()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation_ends()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hide()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._hide()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._hide()

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._progress is not None:
            self._progress.console.print(*args)
        elif self._enabled:
            print(*args)
