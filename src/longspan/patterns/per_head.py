"""A pattern for each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern, common_step
from longspan.patterns.errors import PatternError


@dataclass(frozen=True, eq=False, repr=False)
class PerHead(Pattern):
    """Head h attends by `patterns[h]`.

    Attributes:
        patterns: one a head; head h of a random pattern draws as it would without the others.
    """

    patterns: Sequence[Pattern]

    def validate(self) -> None:
        if isinstance(self.patterns, Pattern) or not isinstance(self.patterns, Sequence):
            raise PatternError("PerHead", "patterns", f"= {self.patterns!r} is not a sequence; give one pattern a head")
        if not self.patterns:
            raise PatternError("PerHead", "patterns", "is empty; give one pattern a head")
        for head, pattern in enumerate(self.patterns):
            if not isinstance(pattern, Pattern):
                raise PatternError("PerHead", f"patterns[{head}]", f"= {pattern!r} is not a pattern; give one, such as Full()")
            if pattern.head_count not in (None, len(self.patterns)):
                raise PatternError(
                    "PerHead",
                    f"patterns[{head}]",
                    f"is made for {pattern.head_count} heads, among "
                    f"{len(self.patterns)}; give a pattern for any number of heads",
                )
        self.normalise(patterns=tuple(self.patterns))

    def settings(self) -> list[tuple[str, str]]:
        return [(str(head), pattern.key) for head, pattern in enumerate(self.patterns)]

    def at_head(self, head: int, heads: int) -> Pattern:
        if heads != len(self.patterns):
            raise PatternError(
                "PerHead", "patterns", f"holds {len(self.patterns)} patterns for {heads} heads; give one pattern a head"
            )
        return self.patterns[head].at_head(head, heads)

    def length_step(self, causal: bool) -> int:
        return common_step(self.patterns, causal)

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        return self.patterns[head].last_query(keys, stop, head)

    @property
    def head_count(self) -> int | None:
        return len(self.patterns)

    @property
    def home(self) -> torch.device:
        return next((p.home for p in self.patterns if p.home.type != "cpu"), torch.device("cpu"))
