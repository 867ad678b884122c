"""Numbers along a sequence, several tracks of them, such as how active DNA is in each of many assays; and of pairs of bins.

Legend: B batch, T tokens, n bins (or pairs of bins), K tracks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from longspan.config.errors import CallError, wrong_value
from longspan.models import Transformer
from longspan.models.strands import StrandHead, aligned
from longspan.models.track_heads import ContactHead, TrackHead
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.language_modelling import identity
from longspan.tasks.strands import AveragesStrands
from longspan.tasks.track_metrics import SequencePearson, StratumCorrelation, TrackPearson

LOSSES = ("poisson", "mse")
EPSILON = 1e-5  # keeps the deviance's logarithms finite


class TrackRegression(AveragesStrands, Task):
    """K numbers for each of n bins: `pearson` over all bins, the mean over tracks, `pearson_sequence` over the numbers of each
    sequence, the mean over sequences, and mean squared error.

    Args:
        model: an encoder.
        bins: (tokens a bin, n, tokens before the first).
        target_mean: [K], of the training data: what is said before anything is learned.
        track_names: K names, which predictions carry.
        pooled: {name: tracks} that are correlated together, and counts as of `TrackPearson`.
        swap: [K], the track on the other strand.
        loss: "poisson": half the Poisson deviance of softplus of the last layer, for counts and other numbers from 0 on; "mse".
        head_dropout: before the last layer.
        average_strands: outside training, numbers are the mean over a sequence of DNA and its reverse complement.

    Batches: ``tokens`` [B, T], ``labels`` [B, n, K], NaN where nothing is known.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        bins: Sequence[int],
        target_mean: Sequence[float],
        track_names: Sequence[str] | None = None,
        pooled: Mapping[str, Sequence[int]] | None = None,
        counts: Sequence[bool] | None = None,
        swap: Sequence[int] | None = None,
        loss: str = "poisson",
        head_dropout: float = 0.0,
        average_strands: bool = False,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        decay_embeddings: bool = False,
    ) -> None:
        if loss not in LOSSES:
            raise wrong_value("task.loss", loss, f"choose one of {', '.join(LOSSES)}")
        self.loss, self.tracks = loss, len(target_mean)
        self.bins = int(bins[0]), int(bins[1]), int(bins[2])
        self.track_names = list(track_names) if track_names else [str(n) for n in range(self.tracks)]
        self.swap = None if swap is None else list(swap)
        groups = None if pooled is None else list(pooled.values())
        metrics = self._metrics(groups, counts)
        self.metrics_info = {name: bool(getattr(metric, "higher_is_better", True)) for name, metric in metrics.items()}
        self.primary_metric = next(iter(metrics))
        bias = [_before_softplus(mean) for mean in target_mean] if loss == "poisson" else list(target_mean)
        super().__init__(
            model,
            self._head(model, bias, head_dropout),
            {"numbers": MetricCollection(metrics, compute_groups=False)},
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={"bins": list(self.bins), "tracks": self.tracks, "loss": loss},
        )
        self.average_strands = average_strands

    def _head(self, model: Transformer, bias: Sequence[float], dropout: float) -> StrandHead:
        return TrackHead(model, self.bins, bias, dropout=dropout, swap=self.swap)

    def _metrics(self, groups: Any, counts: Any) -> dict[str, Metric | MetricCollection]:
        """The first is the one by which models are chosen."""
        return {
            "pearson": TrackPearson(self.tracks, groups, counts),
            "pearson_sequence": SequencePearson(),
            "mse": MaskedError(),
        }

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        facts = {"bins": [data.bins.size, data.bins.held, data.bins.margin], "target_mean": data.target_mean}
        for key in ("pooled", "counts", "swap"):
            if getattr(data, key) is not None:
                facts[key] = getattr(data, key)
        return {**facts, "track_names": list(data.tracks)}

    @property
    def numbers(self) -> int:
        """n."""
        return self.bins[1]

    def read(self, batch: Batch) -> Tensor:
        """Numbers [B, n, K], before the loss's own function."""
        strand, tokens = self.over_strands(), self.entry(batch, "tokens")
        said = self.model.head(self.hidden(batch)).float()
        if strand is None:
            return self._numbers(said)
        order = strand.order(tokens, batch.get("lengths"), batch.get("segments"))
        other = self.model.head(aligned(self.hidden(batch, strand(tokens, order)), order)).float()
        return (self._numbers(said) + self._numbers(other if self.swap is None else other[..., self.swap])) / 2

    def _numbers(self, said: Tensor) -> Tensor:
        return F.softplus(said) if self.loss == "poisson" else said

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        labels, said = self.entry(batch, "labels").float(), self.read(batch)
        if labels.shape != said.shape:
            raise CallError(f"labels must be {list(said.shape)}; got {list(labels.shape)}")
        known = ~labels.isnan()
        right = torch.where(known, labels, 0.0)
        count = known.sum()
        if self.loss == "mse":
            losses = (said - right).square()
        elif (right < 0).any():
            raise wrong_value("task.loss", "poisson", f"a target is {right.min():.3g}, below 0; take task.loss=mse")
        else:
            losses = said - right + right * ((right + EPSILON) / (said + EPSILON)).log()
        loss = torch.where(known, losses, 0.0).sum() / count.clamp(min=1)
        return Step(loss, count, {} if stage == "train" else {"numbers": (said, labels)})

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """``values`` [B, n, K], and the sequences' ids and starts."""
        return {**identity(batch), "values": self.read(batch).cpu()}


class ContactRegression(TrackRegression):
    """K numbers for each pair of bins two or more apart, P in all: as `TrackRegression`, and `scc`, the stratum-adjusted
    correlation of maps.

    Batches: ``tokens`` [B, T], ``labels`` [B, P, K], pairs ordered as `torch.triu_indices(n, n, 2)`.
    """

    def __init__(self, model: Transformer, *, loss: str = "mse", pair_width: int = 64, **settings: Any) -> None:
        self.pair_width = pair_width
        super().__init__(model, loss=loss, **settings)

    def _head(self, model: Transformer, bias: Sequence[float], dropout: float) -> StrandHead:
        return ContactHead(model, self.bins, bias, width=self.pair_width, dropout=dropout)

    def _metrics(self, groups: Any, counts: Any) -> dict[str, Metric | MetricCollection]:
        metrics = super()._metrics(groups, counts)
        return {"pearson": metrics.pop("pearson"), "scc": StratumCorrelation(self.bins[1]), **metrics}


class MaskedError(Metric):
    """Mean squared error of all known numbers."""

    full_state_update = False
    higher_is_better = False
    error: Tensor
    numbers: Tensor

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        self.add_state("error", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("numbers", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, said: Tensor, right: Tensor) -> None:
        """Predicted and right numbers, of one shape; NaN in the second where nothing is known."""
        known = ~right.isnan()
        self.error += torch.where(known, (said.detach() - right).double().square(), 0.0).sum()
        self.numbers += known.sum()

    def compute(self) -> Tensor:
        return (self.error / self.numbers.clamp(min=1)).float()


def _before_softplus(mean: float) -> float:
    """The number whose softplus is `mean`, at least 1e-6."""
    mean = max(float(mean), 1e-6)
    return mean + math.log(-math.expm1(-mean))
