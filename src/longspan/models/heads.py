"""Heads: they turn hidden states into predictions.

Legend: B batch, T tokens, N any number of tokens, C model width, V vocabulary, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longspan.config.errors import wrong_value
from longspan.cost import Cost, linear_flops
from longspan.models.cache import ModelCache
from longspan.models.strands import StrandHead
from longspan.models.transformer import Transformer, parameter_count

POOLINGS = ("mean", "first")


class LanguageModellingHead(nn.Module):
    """Hidden states [..., C] to logits [..., V]; by default with the embedding's own weights (1608.05859)."""

    def __init__(self, backbone: Transformer, *, tied: bool = True) -> None:
        super().__init__()
        self.projection = nn.Linear(backbone.width, backbone.vocab_size, bias=False)
        if tied:
            self.projection.weight = backbone.embedding.weight
        else:
            nn.init.normal_(self.projection.weight, std=0.02)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.projection(hidden)  # (..., V)

    def cost(self, length: int) -> Cost:
        return Cost(other_flops=linear_flops(length, self.projection.in_features, self.projection.out_features))


def token_head(backbone: Any, make: Callable[..., nn.Module], *, tied: bool) -> nn.Module:
    """The head of a pretrained backbone, which has learned its own, else a new one."""
    own = getattr(backbone, "token_head", None)
    return make(backbone, tied=tied) if own is None else own()


class MaskedModellingHead(StrandHead):
    """BERT's (1810.04805): a dense layer, GELU, a norm, then tied logits with a bias of their own."""

    def __init__(self, backbone: Transformer, *, tied: bool = True) -> None:
        strands = getattr(backbone, "other_strand", None)
        super().__init__(backbone, None if strands is None else strands.complement.values)
        width = self.strand_width
        self.dense = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.dense.weight, std=width**-0.5)
        self.norm = nn.RMSNorm(width, eps=backbone.settings.norm_eps)
        self.projection = nn.Linear(width, backbone.vocab_size)
        nn.init.zeros_(self.projection.bias)
        if tied:
            self.projection.weight = backbone.embedding.weight
        else:
            nn.init.normal_(self.projection.weight, std=0.02)

    def of_strand(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.projection(self.norm(F.gelu(self.dense(hidden), approximate="tanh")))  # (..., V)

    def strand_cost(self, length: int) -> Cost:
        width, vocabulary = self.projection.in_features, self.projection.out_features
        return Cost(other_flops=linear_flops(length, width, width) + linear_flops(length, width, vocabulary))


def pool(hidden: Tensor, lengths: Tensor | None, pooling: str) -> Tensor:
    """One vector a sequence, [B, T, C] -> [B, C], float32 or float64: the mean of its real tokens, or its first token."""
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    if pooling == "first":
        return hidden[:, 0]  # (B, C)
    if lengths is None:
        return hidden.mean(dim=1)  # (B, C)
    real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]  # (B, T)
    total = hidden.masked_fill(~real[:, :, None], 0.0).sum(dim=1)  # (B, C)
    return total / lengths.clamp(min=1)[:, None]


class PoolingHead(StrandHead):
    """Pools hidden states [B, T, C] to one vector a sequence: the mean of its real tokens, or its first.

    Raises:
        ConfigError: an unknown pooling, or the first token where a model reads both strands.
    """

    def __init__(self, backbone: Transformer, pooling: str) -> None:
        super().__init__(backbone)
        if pooling not in POOLINGS:
            raise wrong_value("task.pooling", pooling, f"choose one of {', '.join(POOLINGS)}")
        if pooling == "first" and self.both_strands:
            fix = "the first token is another one on each strand; take task.pooling=mean, or model.reverse_complement=null"
            raise wrong_value("task.pooling", pooling, fix)
        self.pooling = pooling


class SequenceClassificationHead(PoolingHead):
    """Hidden states [B, T, C] to logits [B, K], by way of one vector a sequence; see `PoolingHead`."""

    def __init__(self, backbone: Transformer, num_classes: int, *, pooling: str = "mean", dropout: float = 0.0) -> None:
        super().__init__(backbone, pooling)
        self.dropout = nn.Dropout(dropout)
        self.projection = _classifier(self.strand_width, num_classes)

    def of_strand(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.projection(self.dropout(pool(hidden, lengths, self.pooling)))  # (B, K)

    def strand_cost(self, length: int) -> Cost:
        return Cost(other_flops=linear_flops(1, self.projection.in_features, self.projection.out_features))


class TokenLabellingHead(StrandHead):
    """Hidden states [..., C] to logits [..., K], each token by itself; `swap` as of `StrandHead`."""

    def __init__(
        self, backbone: Transformer, num_classes: int, *, dropout: float = 0.0, swap: Sequence[int] | None = None
    ) -> None:
        super().__init__(backbone, swap)
        self.dropout = nn.Dropout(dropout)
        self.projection = _classifier(self.strand_width, num_classes)

    def of_strand(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.projection(self.dropout(hidden))  # (..., K)

    def strand_cost(self, length: int) -> Cost:
        return Cost(other_flops=linear_flops(length, self.projection.in_features, self.projection.out_features))


def _classifier(width: int, num_classes: int) -> nn.Linear:
    if num_classes < 1:
        raise wrong_value("model.num_classes", num_classes, "give a whole number, 1 or more")
    projection = nn.Linear(width, num_classes)
    nn.init.normal_(projection.weight, std=0.02)
    nn.init.zeros_(projection.bias)
    return projection


class HeadedModel(nn.Module):
    """A backbone and a head: tokens [B, T] to logits."""

    def __init__(self, backbone: Transformer, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: Any = head  # a module with a `cost`

    @property
    def width(self) -> int:
        return self.backbone.width

    @property
    def vocab_size(self) -> int:
        return self.backbone.vocab_size

    @property
    def max_length(self) -> int:
        return self.backbone.max_length

    @property
    def causal(self) -> bool:
        return self.backbone.causal

    def forward(
        self,
        tokens: Tensor,
        *,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> Tensor:
        """Logits, [B, T, V], [B, T, K] or [B, K], as the head gives them; `cache` as in `Transformer.forward`."""
        return self.head(self.backbone(tokens, lengths=lengths, segments=segments, cache=cache), lengths)

    def cost(self, length: int) -> Cost:
        """Cost of one sequence of `length` tokens, forward: backbone and head; tied weights count once."""
        both = self.backbone.cost(length) + self.head.cost(length)
        return dataclasses.replace(both, parameters=parameter_count(self))
