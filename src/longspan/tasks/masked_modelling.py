"""Prediction of hidden tokens from both sides.

Legend: B batch, T tokens, M hidden tokens of a batch, C model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from longspan.config.errors import wrong_value
from longspan.cost import Cost
from longspan.models import MaskedModellingHead, Transformer, parameter_count, token_head
from longspan.tasks.base import Batch, Step, Task
from longspan.tasks.breakdown import BREAKDOWN, MeanByLength, nearer_side
from longspan.tasks.language_modelling import identity, loss_metrics, token_unit_of
from longspan.tasks.losses import IGNORED, token_losses, token_predictions, weighted_mean
from longspan.tasks.masking import mask_tokens
from longspan.tasks.metrics import Share


class MaskedModelling(Task):
    """BERT's masked language modelling (1810.04805).

    Bits, perplexity and accuracy are those of the hidden tokens, which outside training are the same in each
    epoch: they depend on the seed and the batch's place.

    Args:
        model: an encoder.
        mask_id: token that hides another.
        special_ids: tokens never hidden nor drawn as replacements (padding, marks of begin and end, the mask).
        masked_share: share of tokens to predict; of these, `replaced_by_mask` become the mask and
            `replaced_at_random` another token.
        token_unit, tied: as for language modelling.
        mask_seed: of the draws.

    Batches: ``tokens`` [B, T], optional ``lengths`` [B] and ``segments`` [B, T]. Predictions: per sequence the bits of
    its hidden tokens.
    """

    ordinary: Tensor

    def __init__(
        self,
        model: Transformer,
        *,
        mask_id: int,
        special_ids: Sequence[int] = (),
        masked_share: float = 0.15,
        replaced_by_mask: float = 0.8,
        replaced_at_random: float = 0.1,
        token_unit: str = "byte",
        tied: bool = True,
        mask_seed: int = 0,
        optimizer: Callable[..., Any] | None = None,
        scheduler: Callable[..., Any] | None = None,
        decay_embeddings: bool = False,
    ) -> None:
        if not 0 <= mask_id < model.vocab_size:
            raise wrong_value("task.mask_id", mask_id, f"give a token id below vocab_size={model.vocab_size}")
        if not 0 < masked_share <= 1:
            raise wrong_value("task.masked_share", masked_share, "give a share above 0, up to 1")
        for key, share in (("replaced_by_mask", replaced_by_mask), ("replaced_at_random", replaced_at_random)):
            if not 0 <= share <= 1 or replaced_by_mask + replaced_at_random > 1:
                raise wrong_value(f"task.{key}", share, "give shares from 0 to 1 that add to at most 1")
        special = {int(token) for token in special_ids} | {mask_id}
        self.ordinary_ids = [token for token in range(model.vocab_size) if token not in special]
        if not self.ordinary_ids:
            raise wrong_value("task.special_ids", sorted(special), "leave some tokens to predict")
        self.mask_id, self.mask_seed = mask_id, mask_seed
        self.masked_share, self.replaced_by_mask = masked_share, replaced_by_mask
        self.replaced_at_random = replaced_at_random
        self.primary_metric, self.metrics_info, metrics = loss_metrics(token_unit)
        self.metrics_info["accuracy"] = True
        self.counts_bytes = "raw" in metrics
        super().__init__(
            model,
            token_head(model, MaskedModellingHead, tied=tied),
            {
                **metrics,
                "hits": MetricCollection({"accuracy": Share()}, compute_groups=False),
                BREAKDOWN: MetricCollection(
                    {"accuracy_by_length": MeanByLength(f"bits_per_{token_unit}", f"{token_unit}s on its shorter side", False)}
                ),
            },
            optimizer=optimizer,
            scheduler=scheduler,
            decay_embeddings=decay_embeddings,
            hyperparameters={
                "token_unit": token_unit,
                "tied": tied,
                "mask_id": mask_id,
                "special_ids": sorted(special),
            },
        )
        # On the device once: a large vocabulary is not sent there at every step.
        self.register_buffer("ordinary", torch.tensor(self.ordinary_ids), persistent=False)

    @classmethod
    def data_arguments(cls, data: Any) -> dict[str, Any]:
        vocabulary = data.vocabulary
        return {"mask_id": int(vocabulary.mask_id), "special_ids": list(vocabulary.special_ids), **token_unit_of(data)}

    def hide(self, batch: Batch, batch_idx: int, stage: str) -> tuple[Tensor, Tensor]:
        """Inputs and targets, [B, T] both."""
        tokens = self.entry(batch, "tokens")
        return mask_tokens(
            tokens,
            generator=self.generator(self.mask_seed, stage, batch_idx, tokens.device),
            mask_id=self.mask_id,
            ordinary_ids=self.ordinary,
            lengths=batch.get("lengths"),
            masked_share=self.masked_share,
            replaced_by_mask=self.replaced_by_mask,
            replaced_at_random=self.replaced_at_random,
        )

    def _hidden(self, batch: Batch, batch_idx: int, stage: str) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [M, C] and targets [M] of the hidden tokens alone, and which [B, T] they are."""
        inputs, targets = self.hide(batch, batch_idx, stage)
        chosen = targets != IGNORED
        # The host waits here for how many they are, before the model is launched: after it, the device would wait for the host.
        places = chosen.flatten().nonzero().squeeze(1)  # (M,)
        hidden = self.hidden(batch, inputs).flatten(0, 1).index_select(0, places)
        return hidden, targets.flatten().index_select(0, places), chosen

    def step(self, batch: Batch, batch_idx: int, stage: str) -> Step:
        hidden, targets, chosen = self._hidden(batch, batch_idx, stage)
        classes = self.model.vocab_size
        losses = token_losses(self.model.head, hidden, targets, classes=classes)
        loss, count = weighted_mean(losses, targets)
        if stage == "train":
            return Step(loss, count, {})
        predicted, _ = token_predictions(self.model.head, hidden, classes=classes)
        sides = nearer_side(batch["tokens"], batch.get("lengths"))[chosen]
        updates: dict[str, tuple[Tensor, ...]] = {
            "losses": (losses.sum(), count),
            "hits": ((predicted == targets).sum(), count),
            BREAKDOWN: (losses / math.log(2), sides),
        }
        if self.counts_bytes:
            updates["raw"] = losses.sum(), (self.entry(batch, "bytes") * chosen).sum()
        return Step(loss, count, updates)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """``bits`` [B] of each sequence's hidden ``tokens`` [B], ``bits_per_token`` [B], and the sequences' ids."""
        hidden, targets, chosen = self._hidden(batch, batch_idx, "predict")
        losses = token_losses(self.model.head, hidden, targets, classes=self.model.vocab_size)
        counts = chosen.sum(1)  # (B,)
        places = losses.new_zeros(chosen.shape).masked_scatter(chosen, losses)  # (B, T)
        bits = places.sum(1) / math.log(2)  # (B,)
        scores = {"bits": bits, "tokens": counts, "bits_per_token": bits / counts.clamp(min=1)}
        if self.counts_bytes:
            scores["bytes"] = (self.entry(batch, "bytes") * chosen).sum(1)
        return {**identity(batch), **{name: score.cpu() for name, score in scores.items()}}

    def cost(self, length: int) -> Cost:
        """As a model's, with a head that runs on the expected number of hidden tokens alone."""
        hidden = round(self.masked_share * length)
        both = self.model.backbone.cost(length) + self.model.head.cost(hidden)
        return dataclasses.replace(both, parameters=parameter_count(self.model))
