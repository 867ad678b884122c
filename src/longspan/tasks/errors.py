"""What can go wrong in a task."""

from __future__ import annotations

from pathlib import Path


class TaskConfigError(ValueError):
    """A task, optimizer or scheduler setting that cannot be used; names the config key, its value and the fix."""

    def __init__(self, key: str, value: object, fix: str) -> None:
        self.key, self.value, self.fix = key, value, fix
        super().__init__(f"{key}={value!r}: {fix}")


class BatchError(ValueError):
    """A batch that lacks what the task needs."""


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
        step: optimizer steps taken before it.
        batch_path: file that holds the batch, for ``torch.load(..., weights_only=True)``.
    """

    def __init__(self, stage: str, loss: float, step: int, epoch: int, batch_idx: int, batch_path: Path) -> None:
        self.step, self.batch_path = step, batch_path
        super().__init__(
            f"{stage} loss is {loss} at step {step} (epoch {epoch}, batch {batch_idx}); the batch is in {batch_path}. "
            "Lower optimizer.lr, lengthen scheduler.warmup_steps, clip with trainer.gradient_clip_val=1.0, "
            "or set model.qk_norm=true"
        )
