"""Keys that stand for blocks of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern
from longspan_kernels.block_sparse.block_rules import PastBlocks
from longspan_kernels.block_sparse.rules import Rule


@dataclass(frozen=True, eq=False, repr=False)
class CompressedKeys(Pattern):
    """Which compressed keys a query sees, of calls with T queries and one key for every `step` tokens.

    Query t sees key j from token j * step + first on and, where `until` is given, before token j * step + until too. Calls are
    not causal: what a query may see of its past is in these numbers.

    Attributes:
        step: tokens from the start of a key's block to that of the next.
        first: tokens from the start of a block to the first query behind it that sees its key.
        until: tokens from the start of a block to the first query that does not see its key from before it; None where no
            query sees what lies ahead.
    """

    step: int
    first: int
    until: int | None = None

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        behind: Rule = PastBlocks(self.step, self.first, k_len - q_len)
        return behind if self.until is None else behind | ~PastBlocks(self.step, self.until, k_len - q_len)
