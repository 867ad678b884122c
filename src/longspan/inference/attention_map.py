"""Draws the attention weights of a trained model on a sequence of its data.

Legend: H heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor

from longspan.attention.weights import MOST_MAPPED
from longspan.config.errors import ConfigError
from longspan.inference.rebuild import rebuild
from longspan.training.callbacks.attention_weights import CaughtWeights
from longspan.training.callbacks.pattern_sketch import attention_modules


@dataclass(frozen=True)
class Weights:
    """Of the first sequence of the validation data: (layer, [H, T, T]) for each layer."""

    variant: str
    name: str
    causal: bool
    layers: list[tuple[int, Tensor]]


def attention_weights(checkpoint: str, words: Sequence[str], conf: Path, tokens: int = 256) -> Weights:
    """Weights over the first `tokens` of a sequence, as in evaluation.

    Args:
        words: `key=value` overrides of the checkpoint's config, such as other data.

    Raises:
        ConfigError: a model without attention that tells its weights, or too many tokens for a map.
    """
    if not 1 <= tokens <= MOST_MAPPED:
        raise ConfigError(f"tokens={tokens} must be a number from 1 to {MOST_MAPPED}")
    run = rebuild(checkpoint, [*words, "trainer.limit_val_batches=1"], conf)
    variant, modules = run.config["attention_name"], attention_modules(run.task)
    caught = CaughtWeights(tokens)
    run.datamodule.prepare_data()
    run.datamodule.setup("validate")
    run.trainer([Listening(caught, modules)]).validate(run.task, run.datamodule, verbose=False)
    layers = caught.weights()
    if not layers:
        raise ConfigError(f"checkpoint={checkpoint}: attention={variant} does not tell what it attends to")
    return Weights(variant, run.config["name"], bool(modules[0].causal), layers)


class Listening(pl.Callback):
    """Listens once the model is where it runs."""

    def __init__(self, caught: CaughtWeights, modules: Sequence) -> None:
        self.caught, self.modules = caught, modules

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.caught.listen(self.modules, patterns=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.caught.stop()
