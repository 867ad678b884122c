"""Adds up the costs that parts state about themselves; knows no model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from longspan.cost.types import Cost


@runtime_checkable
class Costed(Protocol):
    """Anything that states its cost for one sequence of `length` tokens, forward only."""

    def cost(self, length: int) -> Cost: ...


def total_cost(parts: Iterable[Costed] | Costed, length: int) -> Cost:
    """Sum of ``part.cost(length)``; one part may be handed alone.

    Parts must not overlap: a model already contains its layers.

    Raises:
        TypeError: a part has no ``cost`` method.
        ValueError: `length` is negative.
    """
    if length < 0:
        raise ValueError(f"length must be 0 or more, got {length}")
    if isinstance(parts, Costed):
        return parts.cost(length)
    total = Cost()
    for part in parts:
        if not isinstance(part, Costed):
            raise TypeError(f"{type(part).__name__} states no cost; give it a method cost(length) -> Cost")
        total = total + part.cost(length)
    return total


def linear_flops(tokens: int, inputs: int, outputs: int) -> int:
    """FLOPs of a dense layer over `tokens` tokens: a multiply and an add for each weight. Biases are not matmuls."""
    return 2 * tokens * inputs * outputs
