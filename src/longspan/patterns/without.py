"""A pattern less another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern, common_step, searched
from longspan.patterns.errors import PatternError
from longspan_kernels.block_sparse.rules import And, Not, Rule


@dataclass(frozen=True, eq=False, repr=False)
class Without(Pattern):
    """A pair is live where `pattern` keeps it and `removed` does not.

    Attributes:
        pattern: what is kept.
        removed: what is left out of it.
    """

    pattern: Pattern
    removed: Pattern

    def validate(self) -> None:
        for name in ("pattern", "removed"):
            if not isinstance(getattr(self, name), Pattern):
                raise PatternError("Without", name, f"= {getattr(self, name)!r} is not a pattern; give one, such as Local(64)")
        counts = {part.head_count for part in (self.pattern, self.removed)} - {None}
        if len(counts) > 1:
            raise PatternError("Without", "removed", f"and pattern are made for {counts} heads; give them equally many")

    def settings(self) -> list[tuple[str, str]]:
        return [("pattern", self.pattern.key), ("removed", self.removed.key)]

    def at_head(self, head: int, heads: int) -> Pattern:
        own, removed = self.pattern.at_head(head, heads), self.removed.at_head(head, heads)
        return self if (own, removed) == (self.pattern, self.removed) else Without(own, removed)

    def length_step(self, causal: bool) -> int:
        return common_step((self.pattern, self.removed), causal)

    @property
    def head_count(self) -> int | None:
        return self.pattern.head_count if self.pattern.head_count is not None else self.removed.head_count

    @property
    def home(self) -> torch.device:
        return self.pattern.home if self.pattern.home.type != "cpu" else self.removed.home

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        return searched(self, keys, stop, head, self.pattern.last_query(keys, stop, head))

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        kept = self.pattern.rule(q_len, k_len, heads, causal, device)
        return And(kept, Not(self.removed.rule(q_len, k_len, heads, causal, device)))
