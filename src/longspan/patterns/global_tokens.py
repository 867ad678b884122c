"""Tokens that see and are seen by every other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern, causal_part, pairs_at_distances
from longspan.patterns.errors import PatternError, position_ranges, position_set, whole_number
from longspan_kernels.block_sparse.rules import Keys, Or, Queries, Rule


@dataclass(frozen=True, eq=False, repr=False)
class Global(Pattern):
    """i or j is global (Longformer, arXiv:2004.05150; BigBird's ITC, arXiv:2007.14062).

    Attributes:
        first: the first `first` positions are global; or
        positions: these positions are; those at or past the length are ignored. Give one of the two.
    """

    first: int | None = None
    positions: Sequence[int] | None = None

    def validate(self) -> None:
        if (self.first is None) == (self.positions is None):
            given = "neither is given" if self.first is None else "both are given"
            raise PatternError(
                "Global", "first, positions", f": {given}; give one, Global(first=4) or Global(positions=(0, 9))"
            )
        if self.first is not None:
            self.normalise(first=whole_number("Global", "first", self.first, 0, "a number of tokens"))
        else:
            self.normalise(positions=position_set("Global", "positions", self.positions))

    def settings(self) -> list[tuple[str, str]]:
        if self.positions is None:
            return [("first", repr(self.first))]
        return [("positions", ranges_text(self.ranges))]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The global positions as half-open ranges."""
        if self.positions is None:
            return [(0, self.first)] if self.first else []
        return position_ranges(tuple(self.positions))

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        return global_rule(self.ranges, k_len, causal)

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        return last_global_query(self.ranges, keys, stop)

    def count(self, length: int, heads: tuple[int, ...], causal: bool) -> int:
        others = length - sum(min(stop, length) - start for start, stop in self.ranges if start < length)
        # All pairs but those between tokens that are not global.
        return len(heads) * (pairs_at_distances(length, 1, None, causal) - pairs_at_distances(others, 1, None, causal))


def global_rule(ranges: list[tuple[int, int]], k_len: int, causal: bool) -> Rule:
    """i or j lies in one of the half-open ranges, cut at `k_len`."""
    inside = [(start, min(stop, k_len)) for start, stop in ranges if start < k_len]
    return Or(causal_part(Keys(inside, ranges), causal), causal_part(Queries(inside), causal))


def last_global_query(ranges: list[tuple[int, int]], keys: torch.Tensor, stop: int) -> torch.Tensor:
    """`Pattern.last_query` where i or j lies in one of the half-open ranges: a global key is seen to the end, and the last
    global query sees what is before it."""
    inside = [(start, min(end, stop)) for start, end in ranges if start < stop]
    last = max((end for _, end in inside), default=0) - 1
    out = torch.where(keys <= last, last, -1)
    for start, end in inside:
        out = torch.where((keys >= start) & (keys < end), stop - 1, out)
    return out


def ranges_text(ranges: list[tuple[int, int]]) -> str:
    """Half-open ranges in few characters: (0-63, 100)."""
    return "(" + ", ".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in ranges) + ")"
