"""Every stride-th key, counted from the query."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern, causal_part, pairs_at_distances
from longspan.patterns.errors import whole_number
from longspan_kernels.block_sparse.rules import Congruent, Rule


@dataclass(frozen=True, eq=False, repr=False)
class Strided(Pattern):
    """(i - j) % stride == 0 (Sparse Transformer, arXiv:1904.10509).

    Attributes:
        stride: tokens from one key to the next.
    """

    stride: int

    def validate(self) -> None:
        self.normalise(stride=whole_number("Strided", "stride", self.stride, 1, "the step between keys in tokens"))

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        return causal_part(Congruent(self.stride), causal)

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        return keys + (stop - 1 - keys) // self.stride * self.stride

    def count(self, length: int, heads: tuple[int, ...], causal: bool) -> int:
        return len(heads) * pairs_at_distances(length, self.stride, None, causal)
