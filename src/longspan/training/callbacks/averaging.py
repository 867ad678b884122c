"""A moving average of the weights (1306.2759) that is also what gets tested."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor


def _averaged(decay: float, average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
    """The new average; `updates` is how many went into the old one."""
    count = float(updates)
    weight = min(decay, (1 + count) / (10 + count))
    return weight * average + (1 - weight) * current


class AveragedWeights(EMAWeightAveraging):
    """Lightning's exponential moving average, with the figures at the end of a run those of the average.

    Validation uses the average and checkpoints hold it as their weights (the raw ones beside it, to resume from).
    Lightning's callback would put the raw weights back when a test in the same process loads such a checkpoint, so
    that the test's figures belong to other weights than the checkpoint's; and it would overwrite the raw weights before
    the last checkpoint of a training is written.

    An average with a fixed decay of 0.999 is after 300 steps still made of the initial weights by three quarters. So the decay
    rises, as that of TensorFlow's moving averages does: after n updates it is (1 + n) / (10 + n), at most `decay`, and the
    average is of about the last tenth of a short run.

    Args:
        decay: weight of the old average, from 0 up to, not including, 1.
        warm_up: false: `decay` from the start.
        settings: those of ``lightning.pytorch.callbacks.EMAWeightAveraging``: decay, update_every_n_steps, ... Buffers
            are taken as they are unless told otherwise: they hold counts and choices, of which there is no average.
    """

    def __init__(self, decay: float = 0.999, warm_up: bool = True, **settings: Any) -> None:
        super().__init__(decay=decay, **{"use_buffers": False, **settings})
        if warm_up:
            self._kwargs = {**self._kwargs, "avg_fn": partial(_averaged, decay)}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Does nothing: the last checkpoints are written in this hook, after this callback."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
