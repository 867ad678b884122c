"""Targets from sources: translations, summaries, any text from a text.

Legend: B batch, Ts source tokens, Tt target tokens, C model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from longspan.config.errors import CallError, wrong_value
from longspan.models import EncoderDecoder, LanguageModellingHead
from longspan.models.search import Beam, search
from longspan.models.sight import packed_pairs
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.language_modelling import identity
from longspan.tasks.losses import IGNORED, token_losses, token_predictions, weighted_mean
from longspan.tasks.metrics import BitsPerToken, Share
from longspan.tasks.text_metrics import TEXT_METRICS, AverageLagging, text_metric
from longspan.values import is_whole


class SequenceToSequence(Task):
    """Teacher forcing in training; in evaluation targets are searched for, and compared with the references as texts.

    Args:
        model: an `EncoderDecoder`.
        bos_id, eos_id, special_ids: of the target's vocabulary.
        metrics: of `TEXT_METRICS`; the first is the primary one.
        bleu_tokenize: how sacrebleu cuts words: 13a, intl, char, zh, ja-mecab or none.
        beam: hypotheses of the search; 1 is greedy.
        length_penalty: see `longspan.models.search.Beam`.
        label_smoothing: share of the target spread over all tokens (1512.00567), in training.
        tied: whether the head shares the target embedding's weights.

    Batches: ``tokens`` [B, Ts], ``target`` [B, Tt] that begin with <bos>, ``labels`` [B, Tt] that end with <eos>, optional
    ``lengths``, ``target_lengths`` [B] and, of packed pairs, ``segments``, ``target_segments``; ``references``, a text each,
    in evaluation.
    """

    causal = True
    model_facts: ClassVar[tuple[str, ...]] = ("target_vocab_size", "max_target_length")

    def __init__(
        self,
        model: EncoderDecoder,
        *,
        bos_id: int,
        eos_id: int,
        special_ids: Sequence[int] = (),
        metrics: Sequence[str] = ("bleu", "exact_match"),
        bleu_tokenize: str = "13a",
        beam: int = 1,
        length_penalty: float = 1.0,
        label_smoothing: float = 0.0,
        tied: bool = True,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        decay_embeddings: bool = False,
    ) -> None:
        if not isinstance(model, EncoderDecoder):
            raise wrong_value("model", type(model).__name__, "SequenceToSequence needs model=encoder_decoder")
        wanted = list(metrics)
        wrong = [name for name in wanted if name not in TEXT_METRICS]
        if wrong or not wanted or len(set(wanted)) < len(wanted):
            raise wrong_value("task.metrics", wanted, f"take some of {', '.join(TEXT_METRICS)}, each once")
        if not is_whole(beam, 1):
            raise wrong_value("task.beam", beam, "give a number of hypotheses, 1 or more")
        self.primary_metric = wanted[0]
        self.metrics_info = {**dict.fromkeys(wanted, True), "token_accuracy": True, "bits_per_token": False}
        texts = MetricCollection({name: text_metric(name, bleu_tokenize) for name in wanted}, compute_groups=False)
        groups = {
            "texts": texts,
            "losses": MetricCollection({"bits_per_token": BitsPerToken()}),
            "hits": MetricCollection({"token_accuracy": Share()}),
        }
        if model.sight.streams:
            groups["lagging"] = MetricCollection({"average_lagging": AverageLagging()})
        super().__init__(
            model,  # type: ignore[arg-type]
            LanguageModellingHead(model, tied=tied),  # type: ignore[arg-type]
            groups,
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={"bos_id": bos_id, "eos_id": eos_id, "special_ids": list(special_ids), "tied": tied},
        )
        self.bos_id, self.eos_id, self.special_ids = bos_id, eos_id, list(special_ids)
        self.label_smoothing = label_smoothing
        self.beam = Beam(beam, length_penalty)
        self.target_vocabulary: Any = None
        self._latency = Latency()

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        known = data.target_vocabulary
        return {
            "target_vocab_size": int(known.size),
            "max_target_length": int(data.max_target_length),
            "bos_id": int(known.bos_id),
            "eos_id": int(known.eos_id),
            "special_ids": [int(number) for number in known.special_ids],
        }

    def attach(self, data: Any) -> None:
        self.target_vocabulary = data.target_vocabulary

    def check_training(self, data: Any) -> None:
        sight: Any = self.model.backbone.sight
        if getattr(data, "pack", False) and not sight.whole:
            raise packed_pairs(sight.name)

    def configure_callbacks(self) -> list[pl.Callback]:
        more = [] if "lagging" not in self.test_metrics or self._latency in self.trainer.callbacks else [self._latency]  # type: ignore[attr-defined]
        return [*super().configure_callbacks(), *more]

    def forward(self, tokens: Tensor, target: Tensor, **lengths_and_segments: Tensor | None) -> Tensor:  # type: ignore[override]
        """Logits [B, Tt, V] of sources [B, Ts] and target inputs [B, Tt]; see `EncoderDecoder.forward`."""
        return self.model.head(self.model.backbone(tokens, target, **lengths_and_segments))

    def hidden(self, batch: Batch, tokens: Tensor | None = None) -> Tensor:
        """Hidden states [B, Tt, C] of a batch's targets, given its sources."""
        names = ("lengths", "segments", "target_lengths", "target_segments")
        given = {name: batch[name] for name in names if name in batch}
        source = self.entry(batch, "tokens") if tokens is None else tokens
        return self.model.backbone(source, self.entry(batch, "target"), **given)

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        labels = self.entry(batch, "labels").flatten()  # (B * Tt,)
        hidden = self.hidden(batch).flatten(0, 1)
        smoothed = self._smoothed if stage == "train" and self.label_smoothing else None
        losses = token_losses(self.model.head, hidden, labels, classes=self.model.vocab_size, loss=smoothed)
        loss, count = weighted_mean(losses, labels)
        if stage == "train":
            return Step(loss, count, {})
        given, _ = token_predictions(self.model.head, hidden, classes=self.model.vocab_size)
        right = ((given == labels) & (labels != IGNORED)).sum()
        found = self.targets(batch)
        updates: dict[str, tuple[Any, ...]] = {
            "losses": (losses.sum(), count),
            "hits": (right, count),
            "texts": (self.texts(found), self._references(batch)),
        }
        if "lagging" in self.test_metrics:
            lengths = self._source_lengths(batch)
            sight: Any = self.model.backbone.sight  # type: ignore[union-attr]
            reads = [[sight.read_before(t, n) for t in range(len(one))] for one, n in zip(found, lengths, strict=True)]
            updates["lagging"] = reads, lengths
        return Step(loss, count, updates)

    def _smoothed(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(
            logits, targets, reduction="none", ignore_index=IGNORED, label_smoothing=self.label_smoothing
        )

    def targets(self, batch: Batch) -> list[list[int]]:
        """The target that is found for each source of a batch, in token ids."""
        was_training = self.training
        self.model.eval()
        found = search(
            self.model,
            self.entry(batch, "tokens"),
            batch.get("lengths"),
            bos=self.bos_id,
            eos=self.eos_id,
            forbidden=self.special_ids,
            beam=self.beam,
        )
        self.model.train(was_training)
        return found

    def texts(self, found: Sequence[Sequence[int]]) -> list[str]:
        """The texts of targets.

        Raises:
            CallError: the task has no target vocabulary yet.
        """
        if self.target_vocabulary is None:
            raise CallError("SequenceToSequence knows no target vocabulary; call task.attach(data) with the data module")
        return [self.target_vocabulary.decode(one) for one in found]

    def _references(self, batch: Batch) -> list[str]:
        if "references" not in batch:
            raise CallError("SequenceToSequence needs 'references' in each batch of evaluation, a text for each source")
        return list(batch["references"])

    @staticmethod
    def _source_lengths(batch: Batch) -> list[int]:
        tokens = batch["tokens"]
        return batch["lengths"].tolist() if "lengths" in batch else [tokens.shape[1]] * len(tokens)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._latency.keep(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._latency.keep(self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """``texts``, the target of each source, and the sources' ids."""
        return {**identity(batch), "texts": self.texts(self.targets(batch))}


class Latency(pl.Callback):
    """Tells the record how far streamed targets lag behind their sources, as a cost."""

    def __init__(self) -> None:
        self.lagging: float | None = None

    def keep(self, metrics: Any) -> None:
        """Takes the figure of the evaluation that ends."""
        if "lagging" in metrics:
            (metric,) = metrics["lagging"].values()
            self.lagging = float(metric.compute())

    def costs(self) -> dict[str, tuple[float, str]]:
        """{name: (value, unit)} for the record."""
        return {} if self.lagging is None else {"average_lagging": (round(self.lagging, 4), "source tokens")}
