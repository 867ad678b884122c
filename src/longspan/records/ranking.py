"""Ranks figures; those that differ by rounding alone are equal.

A mean over a million float32 values is good to about seven digits: a ranking of the eighth says which way it was summed.
"""

from __future__ import annotations

import math

RELATIVE, ABSOLUTE = 1e-6, 1e-7


def tied(one: float, other: float) -> bool:
    """Whether two figures are equal up to rounding. Infinities are equal to themselves, NaN to nothing."""
    return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def better(one: float, other: float, higher_is_better: bool) -> bool:
    """Whether `one` is better than `other` by more than rounding: never both ways, and neither way on a tie."""
    if tied(one, other):
        return False
    return one > other if higher_is_better else one < other
