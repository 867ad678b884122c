"""The error of a training step whose loss is no number."""

from __future__ import annotations

from pathlib import Path


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
