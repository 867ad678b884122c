"""Longformer: a window and global tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern
from longspan.patterns.errors import position_ranges, position_set, whole_number
from longspan.patterns.global_tokens import global_rule, last_global_query, ranges_text
from longspan.patterns.local import Local
from longspan_kernels.block_sparse.rules import Or, Rule


@dataclass(frozen=True, eq=False, repr=False)
class Longformer(Pattern):
    """Local(window) | Global(positions=global_positions) (arXiv:2004.05150).

    Attributes:
        window: keys a query sees around itself; both ways window // 2 on each side, causal `window` up to itself.
        global_positions: tokens that see and are seen by every other; those at or past the length are ignored.
    """

    window: int
    global_positions: Sequence[int] = (0,)

    def validate(self) -> None:
        self.normalise(
            window=whole_number("Longformer", "window", self.window, 1, "a number of keys"),
            global_positions=position_set("Longformer", "global_positions", self.global_positions),
        )

    def settings(self) -> list[tuple[str, str]]:
        return [("window", repr(self.window)), ("global_positions", ranges_text(self._ranges))]

    @property
    def _ranges(self) -> list[tuple[int, int]]:
        return position_ranges(tuple(self.global_positions))

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        window = Local(self.window).last_query(keys, stop)
        return torch.maximum(window, last_global_query(self._ranges, keys, stop))

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        window = Local(self.window).rule(q_len, k_len, heads, causal, device)
        if not self.global_positions:
            return window
        return Or(window, global_rule(self._ranges, k_len, causal))
