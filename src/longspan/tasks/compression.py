"""All tokens of a sequence, read off what the model holds at the last one (MAD's compression, 2403.17844).

Legend: B batch, T tokens, A answers due in a batch, C model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection

from longspan.cost import Cost, linear_flops
from longspan.models import Transformer
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.breakdown import BREAKDOWN
from longspan.tasks.losses import IGNORED
from longspan.tasks.metrics import Share, ShareByDistance


class CompressionHead(nn.Module):
    """Hidden states [B, T, C] to logits [B, T, V]: an MLP sees the last one and a learned vector of the place asked for."""

    def __init__(self, backbone: Transformer) -> None:
        super().__init__()
        self.places = nn.Embedding(backbone.max_length, backbone.width)
        nn.init.normal_(self.places.weight, std=backbone.width**-0.5)
        self.hidden = nn.Linear(backbone.width, 2 * backbone.width)
        self.projection = nn.Linear(2 * backbone.width, backbone.vocab_size)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        T = hidden.shape[1]
        last = hidden[:, -1] if lengths is None else hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        asked = last[:, None] + self.places(torch.arange(T, device=hidden.device))  # (B, T, C)
        return self.projection(F.gelu(self.hidden(asked)))  # (B, T, V)

    def cost(self, length: int) -> Cost:
        flops = linear_flops(length, self.hidden.in_features, self.hidden.out_features)
        return Cost(other_flops=flops + linear_flops(length, self.projection.in_features, self.projection.out_features))


class Compression(Task):
    """Accuracy over all tokens but the last, from the last one's hidden state.

    Args:
        model: a decoder.

    Batches: ``tokens`` and ``labels`` [B, T], -100 where nothing is due, optional ``distances`` [B, T].
    """

    causal = True

    def __init__(
        self,
        model: Transformer,
        *,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        decay_embeddings: bool = False,
    ) -> None:
        self.primary_metric = "accuracy"
        self.metrics_info = {"accuracy": True}
        super().__init__(
            model,
            CompressionHead(model),
            {
                "answers": MetricCollection({"accuracy": Share()}),
                BREAKDOWN: MetricCollection({"accuracy_by_distance": ShareByDistance()}),
            },
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={},
        )

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        return {}

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        labels = self.entry(batch, "labels")
        due = labels != IGNORED  # (B, T)
        logits = self.model.head(self.hidden(batch), batch.get("lengths"))[due].float()  # (A, V)
        answers = labels[due]
        loss = F.cross_entropy(logits, answers)
        if stage == "train":
            return Step(loss, len(answers), {})
        right = logits.argmax(-1) == answers
        updates: dict[str, tuple[Tensor, ...]] = {"answers": (right.sum(), torch.tensor(len(answers), device=right.device))}
        if "distances" in batch:
            updates[BREAKDOWN] = (right, batch["distances"][due])
        return Step(loss, len(answers), updates)
