"""Numbers for whole sequences: mean squared error, and how well their order is found.

Legend: B batch, K numbers a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from longspan.config.errors import CallError, wrong_value
from longspan.models import SequenceClassificationHead, Transformer
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.language_modelling import identity
from longspan.tasks.regression_metrics import regression_metrics
from longspan.tasks.strands import AveragesStrands


class SequenceRegression(AveragesStrands, Task):
    """Regression of whole sequences: mean squared and absolute error, Spearman's and Pearson's correlation, R squared,
    in the targets' own units and each the mean over the K numbers.

    Args:
        model: an encoder.
        target_mean, target_std: K numbers each, of the training data: the model learns (target - mean) / std.
        target_names: K names, which predictions carry.
        pooling: "mean" of the real tokens, or the "first" token.
        head_dropout: on the pooled vector.
        average_strands: outside training, numbers are the mean over a sequence of DNA and its reverse complement.

    Batches: ``tokens`` [B, T], optional ``lengths`` [B], ``labels`` [B, K].
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(
        self,
        model: Transformer,
        *,
        target_mean: Sequence[float],
        target_std: Sequence[float],
        target_names: Sequence[str] | None = None,
        pooling: str = "mean",
        head_dropout: float = 0.0,
        average_strands: bool = False,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        decay_embeddings: bool = False,
    ) -> None:
        numbers = len(target_mean)
        if not numbers or len(target_std) != numbers or any(std <= 0 for std in target_std):
            raise wrong_value("target_std", list(target_std), f"give {numbers} numbers above 0, one a target_mean")
        self.numbers = numbers
        self.target_names = list(target_names) if target_names else [str(n) for n in range(numbers)]
        self.primary_metric = "spearman"
        self.metrics_info = {"mse": False, "mae": False, "spearman": True, "pearson": True, "r2": True}
        super().__init__(
            model,
            SequenceClassificationHead(model, numbers, pooling=pooling, dropout=head_dropout),
            {"numbers": MetricCollection(regression_metrics(numbers), compute_groups=False)},
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={
                "target_mean": list(target_mean),
                "target_std": list(target_std),
                "target_names": self.target_names,
                "pooling": pooling,
            },
        )
        self.register_buffer("target_mean", torch.tensor(target_mean, dtype=torch.float32), persistent=False)
        self.register_buffer("target_std", torch.tensor(target_std, dtype=torch.float32), persistent=False)
        self.average_strands = average_strands

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        return {
            "target_mean": [float(value) for value in data.target_mean],
            "target_std": [float(value) for value in data.target_std],
            "target_names": [str(name) for name in data.columns],
        }

    def _scaled(self, batch: Batch) -> Tensor:
        """Predictions [B, K], of mean 0 and spread 1 where they are right."""
        return self.logits_over_strands(batch, self._read, lambda this, other: (this + other) / 2)

    def _read(self, batch: Batch) -> Tensor:
        tokens = self.entry(batch, "tokens")
        return self.model(tokens, lengths=batch.get("lengths"), segments=batch.get("segments")).float()

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        labels = self.entry(batch, "labels")
        if labels.shape != (len(batch["tokens"]), self.numbers):
            raise CallError(f"labels must be {[len(batch['tokens']), self.numbers]}; got {list(labels.shape)}")
        scaled = self._scaled(batch)
        loss = (scaled - (labels.float() - self.target_mean) / self.target_std).square().mean()
        if stage == "train":
            return Step(loss, len(labels), {})
        return Step(loss, len(labels), {"numbers": (scaled * self.target_std + self.target_mean, labels.float())})

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """``values`` [B, K] in the targets' units, and the sequences' ids."""
        values = self._scaled(batch) * self.target_std + self.target_mean
        return {**identity(batch), "values": values.cpu()}
