"""Next-token prediction over bytes, nucleotides or any tokens.

Legend: B batch, T tokens, C model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from longspan.models import LanguageModellingHead, Transformer, token_head
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.breakdown import BREAKDOWN, MeanByLength, places_before
from longspan.tasks.losses import IGNORED, token_losses, weighted_mean
from longspan.tasks.metrics import BitsPerToken, Perplexity


def next_tokens(tokens: Tensor, lengths: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
    """Targets [B, T] of tokens [B, T]: each place's next token, ignored at a sequence's (or a segment's) last one."""
    targets = torch.full_like(tokens, IGNORED, dtype=torch.int64)
    targets[:, :-1] = tokens[:, 1:]
    if lengths is not None:
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)  # of the targets
        targets = targets.masked_fill(places >= lengths[:, None], IGNORED)
    if segments is not None:
        crossing = segments[:, 1:] != segments[:, :-1]  # (B, T - 1)
        targets[:, :-1] = targets[:, :-1].masked_fill(crossing, IGNORED)
    return targets


def loss_metrics(token_unit: str) -> tuple[str, dict[str, bool], dict[str, MetricCollection]]:
    """The name of the primary metric, whether higher is better of each, and the metrics by group.

    Tokens that are no bytes have bits a token too; bits a byte then count the raw bytes, and compare with those of others.
    """
    per_token = f"bits_per_{token_unit}"
    groups = {
        "losses": MetricCollection({per_token: BitsPerToken(), "perplexity": Perplexity()}, compute_groups=False),
    }
    if token_unit != "token":
        return per_token, {per_token: False, "perplexity": False}, groups
    groups["raw"] = MetricCollection({"bits_per_byte": BitsPerToken()})
    return "bits_per_byte", {"bits_per_byte": False, per_token: False, "perplexity": False}, groups


class LanguageModelling(Task):
    """Causal language modelling: bits a token, named after what a token is (`bits_per_byte`), and perplexity.

    Args:
        model: a decoder.
        token_unit: what one token is: "byte", "base"; or "token", of several bytes, which batches then count.
        tied: whether the head shares the embedding's weights.

    Batches: ``tokens`` [B, T], optional ``lengths`` [B] and ``segments`` [B, T], and where a token is no byte ``bytes`` [B, T],
    raw bytes of each. Predictions: per sequence the bits of
    its tokens after the first, which has nothing to be predicted from.
    """

    causal = True

    def __init__(
        self,
        model: Transformer,
        *,
        token_unit: str = "byte",
        tied: bool = True,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        decay_embeddings: bool = False,
    ) -> None:
        self.primary_metric, self.metrics_info, metrics = loss_metrics(token_unit)
        self.counts_bytes = "raw" in metrics
        super().__init__(
            model,
            token_head(model, LanguageModellingHead, tied=tied),
            {
                **metrics,
                BREAKDOWN: MetricCollection(
                    {"accuracy_by_length": MeanByLength(f"bits_per_{token_unit}", f"{token_unit}s before it", False)}
                ),
            },
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={"token_unit": token_unit, "tied": tied},
        )

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        return token_unit_of(data)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses and targets, [B * T] both."""
        targets = next_tokens(self.entry(batch, "tokens"), batch.get("lengths"), batch.get("segments")).flatten()
        hidden = self.hidden(batch).flatten(0, 1)  # (B * T, C)
        return token_losses(self.model.head, hidden, targets, classes=self.model.vocab_size), targets

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        losses, targets = self._losses(batch)
        loss, count = weighted_mean(losses, targets)
        if stage == "train":
            return Step(loss, count, {})
        counts = targets != IGNORED
        before = places_before(batch["tokens"]).flatten()[counts] + 1  # the target stands one further
        updates: dict[str, tuple[Tensor, ...]] = {
            "losses": (losses.sum(), count),
            BREAKDOWN: (losses[counts] / math.log(2), before),
        }
        if self.counts_bytes:
            updates["raw"] = losses.sum(), self._raw_bytes(batch, counts.view_as(batch["tokens"])).sum()
        return Step(loss, count, updates)

    def _raw_bytes(self, batch: Batch, counts: Tensor) -> Tensor:
        """Raw bytes of the targets that count, [B]; a target is the next token."""
        return (self.entry(batch, "bytes")[:, 1:] * counts[:, :-1]).sum(1)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """``bits`` [B] of each sequence, ``tokens`` [B] they were spent on, ``bits_per_token`` [B], and its ids."""
        losses, targets = self._losses(batch)
        rows = len(batch["tokens"])
        bits = losses.view(rows, -1).sum(1) / math.log(2)  # (B,)
        counts = (targets != IGNORED).view(rows, -1).sum(1)  # (B,)
        scores = {"bits": bits, "tokens": counts, "bits_per_token": bits / counts.clamp(min=1)}
        if self.counts_bytes:
            scores["bytes"] = self._raw_bytes(batch, (targets != IGNORED).view(rows, -1))
        return {**identity(batch), **{name: score.cpu() for name, score in scores.items()}}


def token_unit_of(data: Any) -> dict[str, Any]:
    """``token_unit`` where a data module names its tokens."""
    unit = getattr(data, "token_unit", None)
    return {} if unit is None else {"token_unit": str(unit)}


def identity(batch: Batch) -> dict[str, Any]:
    """Identifies the predictions of a batch: ids of its sequences, and their starts in longer records."""
    known = {name: batch[name] for name in ("ids", "starts", "lengths") if name in batch}
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in known.items()}
