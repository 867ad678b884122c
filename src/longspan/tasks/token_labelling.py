"""One label a token, as genes along a genome.

Legend: B batch, T tokens, N tokens of a batch, C model width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from longspan.config.errors import CallError
from longspan.models import TokenLabellingHead, Transformer
from longspan.models.strands import aligned
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.breakdown import BREAKDOWN, BY_CLASS, MeanByLength, nearer_side
from longspan.tasks.class_loss import ClassLoss
from longspan.tasks.class_weights import WeighsClasses
from longspan.tasks.classes import check_classes, names_of
from longspan.tasks.language_modelling import identity
from longspan.tasks.losses import IGNORED, token_losses, token_predictions, weighted_mean
from longspan.tasks.metrics import label_metrics
from longspan.tasks.per_class import PerClass
from longspan.tasks.strands import AveragesStrands, label_swap, mean_of_classes


class TokenLabelling(AveragesStrands, WeighsClasses, Task):
    """Labels of single tokens: accuracy, macro F1, Matthews correlation, over all tokens with a label.

    Args:
        model: an encoder.
        num_classes: K.
        class_names: K names, which predictions carry.
        head_dropout: before the last layer.
        class_weights: K weights of the loss; or "balanced", by how often each class is in the training data.
        label_smoothing: share of the target that is spread over all classes, in training (1512.00567).
        focal_gamma: gives less to what is already right, 2 in the paper (1708.02002); 0 is cross-entropy.
        average_strands: outside training, probabilities are the mean over a sequence of DNA and its reverse complement, there
            with classes that end in + and - swapped.

    Batches: ``tokens`` [B, T], optional ``lengths`` [B], ``labels`` [B, T] class numbers, -100 where there is none.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        head_dropout: float = 0.0,
        class_weights: Sequence[float] | str | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
        average_strands: bool = False,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        decay_embeddings: bool = False,
    ) -> None:
        self.class_names = check_classes(num_classes, class_names)
        self.class_loss = ClassLoss(label_smoothing, focal_gamma)
        self.num_classes = num_classes
        self.primary_metric = "macro_f1"
        labels = label_metrics(num_classes, multi_label=False)
        self.metrics_info = {str(name): True for name in labels}
        super().__init__(
            model,
            TokenLabellingHead(model, num_classes, dropout=head_dropout, swap=label_swap(self.class_names)),
            {
                "labels": labels,
                BREAKDOWN: MetricCollection(
                    {"accuracy_by_length": MeanByLength("accuracy", "tokens on its shorter side", True)}
                ),
                BY_CLASS: MetricCollection({"per_class": PerClass(self.class_names)}),
            },
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={"num_classes": num_classes, "class_names": self.class_names},
        )
        self.weigh_classes(class_weights)
        self.average_strands, self.swap = average_strands, label_swap(self.class_names)

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        return {"num_classes": int(data.num_classes), "class_names": names_of(data)}

    def targets(self, batch: Batch) -> Tensor:
        """Labels [B, T], ignored also where the sequence has ended."""
        labels = self.entry(batch, "labels").long()
        if labels.shape != batch["tokens"].shape:
            raise CallError(f"labels must be [B, T] = {list(batch['tokens'].shape)}; got {list(labels.shape)}")
        if (lengths := batch.get("lengths")) is not None:
            beyond = torch.arange(labels.shape[1], device=labels.device) >= lengths[:, None]  # (B, T)
            labels = labels.masked_fill(beyond, IGNORED)
        return labels

    def _read(self, batch: Batch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Hidden states [B, T, C], and what makes logits of them; over strands, those of both lie side by side, [B, T, 2 C]."""
        strand, tokens = self.over_strands(), self.entry(batch, "tokens")
        this = self.hidden(batch)
        if strand is None:
            return this, self.model.head
        order = strand.order(tokens, batch.get("lengths"), batch.get("segments"))
        other = aligned(self.hidden(batch, strand(tokens, order)), order)
        return torch.cat((this, other), -1), self._mean_of_strands

    def _mean_of_strands(self, hidden: Tensor) -> Tensor:
        """Logits [N, K] of hidden states [N, 2 C] of both strands."""
        this, other = (self.model.head(half).float() for half in hidden.chunk(2, -1))
        return mean_of_classes(this, other if self.swap is None else other[:, self.swap])

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        hidden, head = self._read(batch)
        hidden = hidden.flatten(0, 1)  # (N, C)
        targets = self.targets(batch).flatten()  # (N,)
        weights = self.class_weights
        of_class = partial(self.class_loss.single, weights=weights, training=stage == "train")
        losses = token_losses(head, hidden, targets, classes=self.num_classes, loss=of_class)
        loss, count = weighted_mean(losses, targets, weights)
        if stage == "train":
            return Step(loss, count, {})
        labelled = targets != IGNORED
        predicted, _ = token_predictions(head, hidden[labelled], classes=self.num_classes)
        sides = nearer_side(batch["tokens"], batch.get("lengths")).flatten()[labelled]
        right = predicted == targets[labelled]
        labels = (predicted, targets[labelled])
        return Step(loss, count, {"labels": labels, BREAKDOWN: (right, sides), BY_CLASS: labels})

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """``labels`` [B, T], their ``probabilities`` [B, T], and the sequences' ids, starts and lengths."""
        hidden, head = self._read(batch)
        labels, sure = token_predictions(head, hidden.flatten(0, 1), classes=self.num_classes)
        shape = hidden.shape[:2]
        return {**identity(batch), "labels": labels.view(shape).cpu(), "probabilities": sure.view(shape).cpu()}
