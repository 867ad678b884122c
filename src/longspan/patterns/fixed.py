"""The query's own block, and the last columns of every block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from longspan_kernels.block_sparse.rules import BlockBand, KeysPeriodic, Or, Rule

from longspan.patterns.base import Pattern, causal_part
from longspan.patterns.errors import PatternError, whole_number


@dataclass(frozen=True, eq=False, repr=False)
class Fixed(Pattern):
    """Same block of `stride` tokens, or j % stride >= stride - summary (Sparse Transformer, arXiv:1904.10509).

    Attributes:
        stride: tokens a block.
        summary: keys at the end of each block that every query sees, 1 to `stride`.
    """

    stride: int
    summary: int

    def validate(self) -> None:
        stride = whole_number("Fixed", "stride", self.stride, 1, "a number of tokens a block")
        summary = whole_number("Fixed", "summary", self.summary, 1, "a number of keys at the end of each block")
        if summary > stride:
            raise PatternError("Fixed", "summary", f"= {summary} is more than stride = {stride}; give 1 to {stride}")
        self.normalise(stride=stride, summary=summary)

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        own = causal_part(BlockBand(self.stride), causal)
        return Or(own, causal_part(KeysPeriodic(self.stride, self.summary), causal))
