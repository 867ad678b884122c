"""Metrics that torchmetrics lacks, or has with values that would mislead here.

All keep sums or lists that torchmetrics adds or gathers over ranks; none is NaN where a class is absent from a split.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelConfusionMatrix,
    MultilabelF1Score,
)
from torchmetrics.functional.classification import binary_auroc


class TokenLoss(Metric):
    """Mean loss a token in nats. Tokens weigh alike however they are batched or spread over ranks."""

    full_state_update = False
    nats: Tensor
    tokens: Tensor

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_state("nats", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, tokens: Tensor) -> None:
        """Add the summed losses of so many tokens."""
        self.nats += nats.detach().float()
        self.tokens += tokens

    def compute(self) -> Tensor:
        return self.nats / self.tokens.clamp(min=1)


class BitsPerToken(TokenLoss):
    """Mean loss a token in bits."""

    higher_is_better = False

    def compute(self) -> Tensor:
        return super().compute() / math.log(2)


class Perplexity(TokenLoss):
    """e to the mean loss a token."""

    higher_is_better = False

    def compute(self) -> Tensor:
        return super().compute().exp()


class Share(Metric):
    """Hits over trials."""

    full_state_update = False
    higher_is_better = True
    hits: Tensor
    trials: Tensor

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_state("hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("trials", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, hits: Tensor, trials: Tensor) -> None:
        self.hits += hits
        self.trials += trials

    def compute(self) -> Tensor:
        return self.hits / self.trials.clamp(min=1)


class ShareByDistance(Metric):
    """Share of right answers for each half of a doubling of a distance: 1, 2, 3, 4 to 5, 6 to 7, 8 to 11, 12 to 15, ..."""

    full_state_update = False
    higher_is_better = True
    ranges = 79  # up to 2 ** 39
    right: Tensor
    answers: Tensor
    distances: Tensor

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for name in ("right", "answers", "distances"):
            self.add_state(name, torch.zeros(self.ranges, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, right: Tensor, distances: Tensor) -> None:
        """Which answers were right, bool [N], and how far each reached, int64 [N], at least 1."""
        doublings = 2 ** torch.arange(1, 1 + self.ranges // 2, device=distances.device)
        edges = torch.cat((doublings, doublings * 3 // 2)).sort().values  # 2, 3, 4, 6, 8, 12, ...
        place = torch.bucketize(distances, edges, right=True)  # (N,)
        for sums, terms in ((self.right, right), (self.answers, torch.ones_like(distances)), (self.distances, distances)):
            sums.scatter_add_(0, place, terms.to(torch.int64))

    def compute(self) -> Tensor:
        """[3, ranges]: shares, answers counted, sums of their distances; a share is 0 where nothing was counted."""
        return torch.stack([self.right / self.answers.clamp(min=1), self.answers, self.distances])

    def rows(self) -> list[dict[str, float]]:
        """For each range that occurred its mean distance, the share of right answers, and how many answers."""
        return [
            {"distance": round(float(total / count), 1), "accuracy": float(share), "answers": int(count)}
            for share, count, total in self.compute().double().cpu().T
            if count
        ]

    def to_record(self) -> list[dict[str, float]]:
        """The figures for the run's record."""
        return self.rows()


def matthews(confusion: Tensor) -> Tensor:
    """Matthews correlation of a confusion matrix [K, K] of counts (rows true), as scikit-learn has it.

    In float64: with a genome's worth of counts the terms cancel beyond float32. 0 where only one class is true or only
    one is predicted, where torchmetrics 1.9 says 1 if the two agree.
    """
    counts = confusion.double().cpu()
    true, predicted, total = counts.sum(1), counts.sum(0), counts.sum()
    covariance = counts.trace() * total - true @ predicted
    spread = ((total**2 - true @ true) * (total**2 - predicted @ predicted)).sqrt()
    value = covariance / spread if spread > 0 else torch.zeros(())
    return value.float().to(confusion.device)


class MulticlassMCC(MulticlassConfusionMatrix):
    """Matthews correlation of single labels."""

    higher_is_better = True

    def compute(self) -> Tensor:
        return matthews(super().compute())


class MultilabelMCC(MultilabelConfusionMatrix):
    """Mean over labels of each one's Matthews correlation; labels that all or no sequences have are left out.

    Of all decisions together, as torchmetrics has it, even constant answers score far above 0 where some labels are
    common and others rare.
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        tables = super().compute()  # (K, 2, 2)
        varied = tables[(tables.sum(dim=2) > 0).all(dim=1)]
        if not len(varied):
            return torch.zeros((), device=tables.device)
        return torch.stack([matthews(table) for table in varied]).mean()


class MacroAUROC(Metric):
    """Mean over classes of the area under each one's ROC curve, one against the rest.

    Classes without a positive or without a negative have no curve and are left out of the mean (torchmetrics would
    count 0 for them); 0.5, chance, where no class has one.
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    truths: list[Tensor]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("truths", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Probabilities [N, K]; target [N] class numbers or [N, K] of 0 and 1."""
        if target.dim() == 1:
            target = torch.nn.functional.one_hot(target, probabilities.shape[1])
        self.scores.append(probabilities.detach().float())
        self.truths.append(target.to(torch.uint8))

    def compute(self) -> Tensor:
        scores = torch.cat(list(self.scores)) if isinstance(self.scores, list) else self.scores  # (N, K)
        truths = torch.cat(list(self.truths)) if isinstance(self.truths, list) else self.truths  # (N, K)
        share = truths.float().mean(dim=0)
        drawn = [k for k, part in enumerate(share.tolist()) if 0 < part < 1]
        if not drawn:
            return torch.tensor(0.5, device=scores.device)
        return torch.stack([binary_auroc(scores[:, k], truths[:, k].long(), validate_args=False) for k in drawn]).mean()


def label_metrics(num_classes: int, *, multi_label: bool) -> MetricCollection:
    """Metrics of predicted labels: [N] class numbers, or with `multi_label` [N, K] of 0 and 1.

    Multi-label accuracy is the share of right (sequence, label) decisions, and its macro F1 counts 0 for a label that
    is neither true nor predicted, as scikit-learn does; single-label macro F1 leaves such classes out. Micro F1 is
    there for several labels only: of single ones it is the accuracy.
    """
    metrics: dict[str, Metric | MetricCollection]
    if multi_label:
        metrics = {
            "accuracy": MultilabelAccuracy(num_classes, average="micro", validate_args=False),
            "macro_f1": MultilabelF1Score(num_classes, average="macro", validate_args=False),
            "micro_f1": MultilabelF1Score(num_classes, average="micro", validate_args=False),
            "mcc": MultilabelMCC(num_classes, validate_args=False),
        }
    else:
        metrics = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "macro_f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            "mcc": MulticlassMCC(num_classes, validate_args=False),
        }
    return MetricCollection(metrics, compute_groups=False)
