"""Patterns by their serialised key, so that an op can take a string and find the pattern behind it.

Kernels know nothing of a pattern but this protocol. Entries stay for the life of the process: a compiled graph or a
backward pass may ask for a key long after the user's own reference is gone.
"""

from __future__ import annotations

from typing import Protocol

import torch

from longspan_kernels.block_sparse.rules import Rule


class LowersToRules(Protocol):
    """What a kernel asks of a pattern."""

    @property
    def key(self) -> str: ...

    def head_rules(
        self, q_len: int, k_len: int, heads: int, causal: bool, device: torch.device | str = "cpu"
    ) -> list[tuple[tuple[int, ...], Rule]]:
        """Groups of heads that share a rule, all heads together; a rule with `per_head` may still differ by head."""
        ...


def state_of(key: str) -> tuple[int, ...]:
    """Numbers that change when what a registered pattern keeps has changed; none for most patterns."""
    state = getattr(lookup(key), "state", None)
    return () if state is None else state()


class UnknownPatternError(KeyError):
    """No pattern of this process has the key."""

    def __str__(self) -> str:
        return str(self.args[0])


_PATTERNS: dict[str, LowersToRules] = {}


def register(key: str, pattern: LowersToRules) -> None:
    """Makes `lookup(key)` find the pattern; equal patterns share a key, and the first of them stays.

    Raises:
        ValueError: a pattern of another type already has the key.
    """
    known = _PATTERNS.setdefault(key, pattern)
    if type(known) is not type(pattern):
        raise ValueError(
            f"key {key!r} belongs to a {type(known).__module__}.{type(known).__name__} and cannot also name a "
            f"{type(pattern).__module__}.{type(pattern).__name__}; rename one of the classes"
        )


def lookup(key: str) -> LowersToRules:
    """The pattern that was registered under the key.

    Raises:
        UnknownPatternError: none was; patterns register themselves when they are constructed or unpickled.
    """
    try:
        return _PATTERNS[key]
    except KeyError:
        raise UnknownPatternError(
            f"no pattern {key!r} in this process; construct (or unpickle) the pattern here before using its key"
        ) from None
