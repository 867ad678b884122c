"""Checks that a value of a config or a call is the kind of number it should be. True, false and NaN are no numbers."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, TypeGuard


def is_whole(value: Any, least: float = float("-inf"), most: float = float("inf")) -> TypeGuard[int]:
    """A whole number from `least` to `most`, both included."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def is_number(value: Any, least: float = float("-inf"), most: float = float("inf")) -> TypeGuard[float]:
    """A number from `least` to `most`, both included."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most
