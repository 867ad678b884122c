"""Both strands of DNA: the other strand of tokens, and an encoder that reads both with one set of weights.

Legend: B batch, T tokens, C model width (`model.width`), V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longspan.config.errors import wrong_value
from longspan.cost import Cost
from longspan.models.transformer import Encoder


class Numbers:
    """Whole numbers as a tensor, on whatever device it is asked for.

    No buffer: what makes models without their weights first, as transformers does, leaves buffers that checkpoints do not hold
    empty.
    """

    def __init__(self, values: Sequence[int]) -> None:
        self.values = tuple(int(value) for value in values)
        self._kept: Tensor | None = None

    def on(self, device: torch.device) -> Tensor:
        """int64, one a value."""
        if self._kept is None or self._kept.device != device:
            with torch.inference_mode(False):  # a tensor first made in a validation loop is used in training afterwards
                self._kept = torch.tensor(self.values, device=device)
        return self._kept


class OtherStrand(nn.Module):
    """The reverse complement of tokens, as `data.reverse_complement` makes it, and where each token of it stands.

    A <bos> at the start of a sequence (of each segment, where documents are packed) stays there, and so does padding.

    Args:
        complement: [V], the id that is paired with each.
        bos_id: the token that begins a document; None where there is none.
    """

    def __init__(self, complement: Sequence[int], bos_id: int | None = None) -> None:
        super().__init__()
        if any(not 0 <= pair < len(complement) or complement[pair] != token for token, pair in enumerate(complement)):
            raise wrong_value(
                "model.reverse_complement", list(complement), "the complement's complement must be the token itself"
            )
        self.bos_id, self.complement = bos_id, Numbers(complement)

    def order(self, tokens: Tensor, lengths: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """[B, T] int64: the place on this strand of each token of the other, which is its own inverse."""
        place = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)  # (B, T)
        begins = place == 0
        if segments is not None:
            begins = begins | (segments != segments.roll(1, 1))
        if lengths is not None:
            begins = begins | (place == lengths[:, None])
        first = torch.where(begins, place, 0).cummax(1).values
        ends = begins.roll(-1, 1) | (place == tokens.shape[1] - 1)
        last = torch.where(ends, place, tokens.shape[1]).flip(1).cummin(1).values.flip(1)
        kept = torch.zeros_like(begins) if self.bos_id is None else tokens.gather(1, first) == self.bos_id
        order = torch.where(kept & (place == first), place, first + kept + last - place)
        return order if lengths is None else torch.where(place < lengths[:, None], order, place)

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Tokens [B, T] of the other strand, in its own direction."""
        return self.complement.on(tokens.device)[tokens].gather(1, order)


class StrandEncoder(Encoder):
    """An encoder with reverse-complement parameter sharing, after Caduceus-PS (2403.03234).

    One set of weights reads a sequence and its reverse complement. Hidden states are [B, T, 2 C]: of each base the C
    channels of its own strand, then those of its partner on the other. The reverse complement of an input therefore has
    the same hidden states in reverse order, with the halves swapped, whatever the attention; heads take the mean over the
    halves, and so predict the same for both strands. It costs two passes.

    Args:
        strands: `complement` [V] and `bos_id` of the vocabulary, see `OtherStrand`.
        settings: as of `Encoder`.
    """

    def __init__(self, *, strands: dict[str, Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.other_strand = OtherStrand(strands["complement"], strands.get("bos_id"))
        self.width = 2 * self.settings.width
        self.full_layers = 2 * self.settings.layers  # that a density is of

    def forward(
        self,
        tokens: Tensor,
        *,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Any = None,
        memory: Any = None,
    ) -> Tensor:
        """Hidden states [B, T, 2 C] of tokens [B, T]; see `Transformer.forward`."""
        order = self.other_strand.order(tokens, lengths, segments)
        both = torch.cat((tokens, self.other_strand(tokens, order)))  # (2 B, T)
        twice = {
            name: None if value is None else torch.cat((value, value))
            for name, value in (("lengths", lengths), ("segments", segments))
        }
        this, other = super().forward(both, cache=cache, memory=memory, **twice).chunk(2)  # (B, T, C) twice
        return torch.cat((this, aligned(other, order)), -1)  # (B, T, 2 C)

    def cost(self, length: int) -> Cost:
        one = super().cost(length)
        return dataclasses.replace(one + one, parameters=one.parameters)


def aligned(other: Tensor, order: Tensor) -> Tensor:
    """Results along the other strand [B, T, C], moved to the places of this one."""
    return other.gather(1, order[..., None].expand_as(other))


class StrandHead(nn.Module):
    """A head that makes logits of one strand's hidden states, and of both the mean.

    Args:
        backbone: where it is a `StrandEncoder`, hidden states are [..., 2 C] and heads read C of them at a time.
        swap: [K], the class on the other strand that is each class of this one; None where strands change no class.
    """

    def __init__(self, backbone: Any, swap: Sequence[int] | None = None) -> None:
        super().__init__()
        self.both_strands = isinstance(backbone, StrandEncoder)
        self.strand_width = backbone.width // 2 if self.both_strands else backbone.width
        self.swap = None if swap is None else Numbers(swap)

    def of_strand(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """Logits of hidden states [..., C]."""
        raise NotImplementedError(f"{type(self).__name__} defines no of_strand(hidden, lengths)")

    def strand_cost(self, length: int) -> Cost:
        """Cost of `of_strand` for one sequence."""
        raise NotImplementedError(f"{type(self).__name__} defines no strand_cost(length)")

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        if not self.both_strands:
            return self.of_strand(hidden, lengths)
        this, other = (self.of_strand(half, lengths) for half in hidden.chunk(2, -1))
        return (this + (other if self.swap is None else other.index_select(-1, self.swap.on(other.device)))) / 2

    def cost(self, length: int) -> Cost:
        one = self.strand_cost(length)
        return one + one if self.both_strands else one
