"""One label, or several, a sequence.

Legend: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from longspan.config.errors import CallError
from longspan.models import SequenceClassificationHead, Transformer
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.breakdown import BREAKDOWN, BY_CLASS, MeanByLength
from longspan.tasks.class_loss import ClassLoss
from longspan.tasks.class_weights import WeighsClasses
from longspan.tasks.classes import check_classes, names_of
from longspan.tasks.language_modelling import identity
from longspan.tasks.losses import weighted_mean
from longspan.tasks.metrics import MacroAUROC, label_metrics
from longspan.tasks.per_class import PerClass
from longspan.tasks.strands import AveragesStrands, mean_of_classes, mean_of_labels


class SequenceClassification(AveragesStrands, WeighsClasses, Task):
    """Classification of whole sequences: accuracy, macro F1 (and micro, of several labels), macro AUROC, Matthews
    correlation.

    Args:
        model: an encoder (a decoder works with neither "first" pooling nor much sense).
        num_classes: K.
        multi_label: whether a sequence may have any number of labels; each is then a yes or no of its own, yes from a
            probability of `threshold` on.
        class_names: K names, which predictions carry.
        pooling: "mean" of the real tokens, or the "first" token.
        head_dropout: on the pooled vector.
        class_weights: K weights of the loss: of a sequence's class, or with `multi_label` of each label's positives; or
            "balanced", by how often each is in the training data.
        label_smoothing: share of the target that is spread over all classes, in training (1512.00567).
        focal_gamma: gives less to what is already right, 2 in the paper (1708.02002); 0 is cross-entropy.
        average_strands: outside training, probabilities are the mean over a sequence of DNA and its reverse complement.

    Batches: ``tokens`` [B, T], optional ``lengths`` [B], ``labels`` [B] class numbers or [B, K] of 0 and 1, optional
    ``widths``, the padded length of each sequence alone: an attention that hangs on the padded length is evaluated at it.
    """

    members = 1  # sequences that share a label

    def __init__(
        self,
        model: Transformer,
        *,
        num_classes: int,
        multi_label: bool = False,
        class_names: Sequence[str] | None = None,
        pooling: str = "mean",
        head_dropout: float = 0.0,
        threshold: float = 0.5,
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
        self.num_classes, self.multi_label, self.threshold = num_classes, multi_label, threshold
        self.primary_metric = "macro_f1" if multi_label else "accuracy"
        labels = label_metrics(num_classes, multi_label=multi_label)
        self.metrics_info = {str(name): True for name in [*labels, "macro_auroc"]}
        super().__init__(
            model,
            self._head(model, num_classes, pooling, head_dropout),
            {
                "labels": labels,
                "scores": MetricCollection({"macro_auroc": MacroAUROC()}, compute_groups=False),
                BREAKDOWN: MetricCollection({"accuracy_by_length": MeanByLength("accuracy", "tokens of the sequence", True)}),
                BY_CLASS: MetricCollection({"per_class": PerClass(self.class_names, multi_label=multi_label)}),
            },
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={
                "num_classes": num_classes,
                "multi_label": multi_label,
                "class_names": self.class_names,
                "pooling": pooling,
            },
        )
        self.weigh_classes(class_weights)
        self.average_strands = average_strands

    def _head(self, model: Transformer, num_classes: int, pooling: str, dropout: float) -> nn.Module:
        return SequenceClassificationHead(model, num_classes, pooling=pooling, dropout=dropout)

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        return {
            "num_classes": int(data.num_classes),
            "multi_label": bool(getattr(data, "multi_label", False)),
            "class_names": names_of(data),
        }

    def _logits(self, batch: Batch) -> Tensor:
        mean = mean_of_labels if self.multi_label else mean_of_classes
        return self.logits_over_strands(batch, self._read, mean)

    def _read(self, batch: Batch) -> Tensor:
        tokens, widths = self.entry(batch, "tokens"), batch.get("widths")
        if widths is None or self.training or not self.model.backbone.depends_on_padding:
            return self.model(tokens, lengths=batch.get("lengths"), segments=batch.get("segments")).float()  # (B, K)
        logits = torch.zeros((len(widths), self.num_classes), device=tokens.device)
        for width in sorted(set(widths)):
            found = [number for number, own in enumerate(widths) if own == width]
            rows = [self.members * number + member for number in found for member in range(self.members)]
            logits[found] = self.model(tokens[rows, :width], lengths=self.entry(batch, "lengths")[rows]).float()
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """[B, K] of logits [B, K]."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)

    def decide(self, probabilities: Tensor) -> Tensor:
        """Labels of probabilities [B, K]: class numbers [B], or [B, K] of 0 and 1."""
        return (probabilities >= self.threshold).long() if self.multi_label else probabilities.argmax(dim=-1)

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        labels = self.entry(batch, "labels")
        count = len(batch["tokens"]) // self.members
        wanted = (count, self.num_classes) if self.multi_label else (count,)
        if labels.shape != wanted:
            raise CallError(f"labels must be {list(wanted)}; got {list(labels.shape)}")
        logits = self._logits(batch)
        weights, training = self.class_weights, stage == "train"
        if self.multi_label:
            loss = self.class_loss.several(logits, labels, weights, training=training).mean()
        else:
            losses = self.class_loss.single(logits, labels.long(), weights, training=training)
            loss, _ = weighted_mean(losses, labels.long(), weights)
        if stage == "train":
            return Step(loss, len(labels), {})
        probabilities, labels = self.probabilities(logits), labels.long()
        decided = self.decide(probabilities)
        right = (decided == labels).float().view(len(labels), -1).mean(1)  # of several labels, the share that is right
        tokens = batch["tokens"]
        lengths = batch["lengths"] if "lengths" in batch else torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        return Step(
            loss,
            len(labels),
            {
                "labels": (decided, labels),
                "scores": (probabilities, labels),
                BREAKDOWN: (right, lengths.view(-1, self.members).amax(1)),
                BY_CLASS: (decided, labels),
            },
        )

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """``probabilities`` [B, K], ``labels`` ([B], or [B, K] of 0 and 1), and the sequences' ids."""
        probabilities = self.probabilities(self._logits(batch))
        return {**identity(batch), "probabilities": probabilities.cpu(), "labels": self.decide(probabilities).cpu()}
