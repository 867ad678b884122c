"""Patterns made of patterns: `p | q` and `p & q`, head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from longspan.patterns.base import Pattern, common_step, searched
from longspan.patterns.errors import PatternError
from longspan_kernels.block_sparse.rules import And, Or, Rule


@dataclass(frozen=True, eq=False, repr=False)
class Composition(Pattern):
    """Two or more patterns combined; nested ones of one kind are joined, repeated ones kept once."""

    parts: tuple[Pattern, ...]
    sign: ClassVar[str]

    @classmethod
    def of(cls, *parts: Pattern) -> Pattern:
        """The parts combined; a single distinct one stays itself."""
        combined = cls(parts)
        return combined if len(combined.parts) > 1 else combined.parts[0]

    def validate(self) -> None:
        owner = type(self).__name__
        flat: dict[Pattern, None] = {}
        for part in self.parts:
            if not isinstance(part, Pattern):
                raise PatternError(owner, "parts", f"holds {part!r}; give patterns")
            flat |= dict.fromkeys(part.parts if isinstance(part, type(self)) else (part,))
        if not flat:
            raise PatternError(owner, "parts", "is empty; give at least one pattern")
        counts = {part.head_count for part in flat} - {None}
        if len(counts) > 1:
            raise PatternError(owner, "parts", f"are made for {sorted(counts)} heads; they must be made for equally many")  # type: ignore[type-var]
        self.normalise(parts=tuple(flat))

    def serialised(self) -> str:
        if len(self.parts) == 1:
            return f"{type(self).__name__}({self.parts[0].key})"
        return f"({self.sign.join(part.key for part in self.parts)})"

    def at_head(self, head: int, heads: int) -> Pattern:
        parts = tuple(part.at_head(head, heads) for part in self.parts)
        return self if parts == self.parts else self.of(*parts)

    def length_step(self, causal: bool) -> int:
        return common_step(self.parts, causal)

    @property
    def head_count(self) -> int | None:
        return next((part.head_count for part in self.parts if part.head_count is not None), None)

    @property
    def home(self) -> torch.device:
        return next((part.home for part in self.parts if part.home.type != "cpu"), torch.device("cpu"))


@dataclass(frozen=True, eq=False, repr=False)
class Union(Composition):
    """`p | q`: a pair is live where any part keeps it."""

    sign = " | "

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        return torch.stack([part.last_query(keys, stop, head) for part in self.parts]).amax(0)

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        return Or(*(part.rule(q_len, k_len, heads, causal, device) for part in self.parts))


@dataclass(frozen=True, eq=False, repr=False)
class Intersection(Composition):
    """`p & q`: a pair is live where every part keeps it."""

    sign = " & "

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        latest = torch.stack([part.last_query(keys, stop, head) for part in self.parts]).amin(0)
        return searched(self, keys, stop, head, latest)

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        known = [p.rule(q_len, k_len, heads, causal, device) for p in self.parts if not p.evaluates_pairs]
        lo, hi = And(*known).band() if known else (None, None)
        reach = k_len if lo is None or hi is None else max(0, hi - lo + 1)
        asked = [p.rule_within(q_len, k_len, heads, causal, device, reach) for p in self.parts if p.evaluates_pairs]
        return And(*known, *asked)
