"""Every pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern, pairs_at_distances
from longspan_kernels.block_sparse.rules import Band, Everything, Rule


@dataclass(frozen=True, eq=False, repr=False)
class Full(Pattern):
    """Every query sees every key (Vaswani et al., arXiv:1706.03762)."""

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        return torch.full_like(keys, stop - 1)

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        return Band(0, None) if causal else Everything()

    def count(self, length: int, heads: tuple[int, ...], causal: bool) -> int:
        return len(heads) * pairs_at_distances(length, 1, None, causal)
