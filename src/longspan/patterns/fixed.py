"""The query's own block, and the last columns of every block."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern, causal_part, end_of_block
from longspan.patterns.errors import PatternError, whole_number
from longspan_kernels.block_sparse.block_rules import BlockBand
from longspan_kernels.block_sparse.rules import KeysPeriodic, Or, Rule


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

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        own = end_of_block(keys, keys // self.stride, self.stride, stop)
        return torch.where(keys % self.stride >= self.stride - self.summary, stop - 1, own)

    def count(self, length: int, heads: tuple[int, ...], causal: bool) -> int:
        stride, summary = self.stride, self.summary
        blocks, rest = divmod(length, stride)
        rest_summary = max(0, rest - (stride - summary))
        if causal:  # own block up to the query, and the summaries of earlier blocks
            own = blocks * stride * (stride + 1) // 2 + rest * (rest + 1) // 2
            earlier = summary * (stride * blocks * (blocks - 1) // 2 + rest * blocks)
            return len(heads) * (own + earlier)
        # every summary key for every query, and of the own block what is no summary
        keys = blocks * summary + rest_summary
        return len(heads) * (length * keys + blocks * stride * (stride - summary) + rest * (rest - rest_summary))
