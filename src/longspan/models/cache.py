"""The cache of a decoder: one a layer, and the embeddings that its stem still needs.

Legend: B batch, T tokens, C model width, K taps of the stem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ModelCache:
    """Made by `Transformer.new_cache`, filled by its forward pass.

    Attributes:
        layers: what each attention module made, first to last.
        stem: [B, K - 1, C] embeddings before the next token, or None without a stem.
        positions: [B] int64, how many tokens each sequence has had.
        seen: as many tokens as the longest sequence has had, at most.
    """

    def __init__(self, layers: Sequence[Any], stem: Tensor | None, positions: Tensor) -> None:
        self.layers, self.stem, self.positions, self.seen = list(layers), stem, positions, 0

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        own = [x for x in (self.stem, self.positions) if x is not None]
        return sum(layer.nbytes for layer in self.layers) + sum(x.numel() * x.element_size() for x in own)

    def select(self, rows: Tensor) -> None:
        """Goes on with the sequences [B] of these numbers, as a beam search does; a sequence may be taken more than once."""
        for layer in self.layers:
            layer.select(rows)
        self.stem = None if self.stem is None else self.stem[rows]
        self.positions = self.positions[rows]

    def advance(self, n: int, lengths: Tensor | None) -> None:
        """Counts n new tokens of each sequence, or as many as `lengths` [B] says."""
        self.positions = self.positions + (n if lengths is None else lengths.to(self.positions.device))
        self.seen += n

    def places(self, n: int, most: int) -> Tensor:
        """[B, n] positions of n new tokens, at most `most` - 1."""
        return (self.positions[:, None] + torch.arange(n, device=self.positions.device)).clamp(max=most - 1)
