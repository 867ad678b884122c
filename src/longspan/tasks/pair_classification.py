"""One label a pair of sequences, each of which is encoded on its own (two towers of one set of weights).

Legend: B pairs, T tokens, C model width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longspan.cost import Cost, linear_flops
from longspan.models import Transformer
from longspan.models.heads import PoolingHead, pool
from longspan.tasks.base import Batch
from longspan.tasks.sequence_classification import SequenceClassification


class PairHead(PoolingHead):
    """Hidden states [2 B, T, C] to logits [B, K]: of the vectors a and b of a pair an MLP sees a, b, a * b and a - b.

    That is the matching of Long Range Arena's retrieval (arXiv:2011.04006).
    """

    def __init__(self, backbone: Transformer, num_classes: int, *, pooling: str, dropout: float) -> None:
        super().__init__(backbone, pooling)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(4 * self.strand_width, self.strand_width)
        self.projection = nn.Linear(self.strand_width, num_classes)

    def of_strand(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        a, b = pool(hidden, lengths, self.pooling).unflatten(0, (-1, 2)).unbind(1)  # (B, C) twice
        both = torch.cat((a, b, a * b, a - b), -1).to(self.hidden.weight.dtype)  # (B, 4 C)
        return self.projection(self.dropout(F.gelu(self.hidden(both))))  # (B, K)

    def strand_cost(self, length: int) -> Cost:
        first, second = self.hidden, self.projection
        flops = linear_flops(1, first.in_features, first.out_features) + linear_flops(
            1, second.in_features, second.out_features
        )
        return Cost(other_flops=flops // 2)  # half of it a sequence


class PairClassification(SequenceClassification):
    """Classification of pairs: the settings and metrics of `SequenceClassification`.

    Batches: ``tokens`` [2 B, T], rows 2n and 2n + 1 of pair n, optional ``lengths`` [2 B], ``labels`` [B].
    """

    members = 2

    def _head(self, model: Transformer, num_classes: int, pooling: str, dropout: float) -> nn.Module:
        return PairHead(model, num_classes, pooling=pooling, dropout=dropout)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        probabilities = self.probabilities(self._logits(batch))
        return {"ids": batch.get("ids"), "probabilities": probabilities.cpu(), "labels": self.decide(probabilities).cpu()}
