"""A moving average of the weights (1306.2759) that is also what gets tested."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn


class AveragedWeights(EMAWeightAveraging):
    """Lightning's exponential moving average, with the figures at the end of a run those of the average.

    Validation uses the average and checkpoints hold it as their weights (the raw ones beside it, to resume from).
    Lightning's callback would put the raw weights back when a test in the same process loads such a checkpoint, so
    that the test's figures belong to other weights than the checkpoint's; and it would overwrite the raw weights before
    the last checkpoint of a training is written.

    Args:
        settings: those of ``lightning.pytorch.callbacks.EMAWeightAveraging``: decay, update_every_n_steps, ... Buffers
            are taken as they are unless told otherwise: they hold counts and choices, of which there is no average.
    """

    def __init__(self, decay: float = 0.999, **settings: Any) -> None:
        super().__init__(decay=decay, **{"use_buffers": False, **settings})

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing yet: checkpoints of the end of training are written in this hook, after this callback."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
