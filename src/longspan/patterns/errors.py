"""The error of a wrong pattern, and the checks of its settings."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable
from typing import Any


class PatternError(ValueError):
    """A setting of a pattern, or a use of it, that cannot work.

    Attributes:
        argument: the setting's name.
        problem: value and fix, for those who name the setting otherwise (a config key).
    """

    def __init__(self, owner: str, argument: str, problem: str):
        super().__init__(f"{owner}: {argument} {problem}")
        self.owner, self.argument, self.problem = owner, argument, problem

    def __reduce__(self):
        return type(self), (self.owner, self.argument, self.problem)


MOST = 1 << 40  # past any position; sums and products of such numbers are cut where a rule is made


def whole_number(owner: str, argument: str, value: Any, least: int, meaning: str, most: int | None = MOST) -> int:
    """`value` as an int of at least `least` and at most `most`.

    Raises:
        PatternError: it is no whole number (a bool is not one), too small or too large.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise PatternError(owner, argument, f"= {reprlib.repr(value)} is not a whole number; give {meaning}, {least} or more")
    if number < least:
        raise PatternError(owner, argument, f"= {number} is below {least}; give {meaning}, {least} or more")
    if most is not None and number > most:
        raise PatternError(owner, argument, f"= {number} is above {most}; give {meaning}, {least} to {most}")
    return number


def position_set(owner: str, argument: str, values: Any) -> tuple[int, ...]:
    """Token positions, ascending, each once.

    Raises:
        PatternError: not a sequence of whole numbers, or one of them is negative.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        shown = reprlib.repr(values)
        raise PatternError(owner, argument, f"= {shown} is not a sequence; give token positions, such as (0, 1, 2)")
    return tuple(sorted({whole_number(owner, argument, v, 0, "token positions") for v in values}))


def position_ranges(positions: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ascending positions as half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for p in positions:
        if ranges and ranges[-1][1] == p:
            ranges[-1] = ranges[-1][0], p + 1
        else:
            ranges.append((p, p + 1))
    return ranges
