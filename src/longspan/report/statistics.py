"""Means over seeds, paired differences with confidence intervals, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from longspan.records.ranking import ABSOLUTE, RELATIVE, better

# Student's t at 97.5 %, by degrees of freedom from 1 to 30
_T_975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
)  # fmt: skip
_NORMAL_975 = 1.959963984540054
Seed = TypeVar("Seed", int, tuple[int, int])


def t_975(degrees: int) -> float:
    """Student's t quantile at 97.5 %: a table to 30 degrees of freedom, then the normal's expansion, good to 1e-4."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be 1 or more, got {degrees}")
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _NORMAL_975
    first = (z**3 + z) / (4 * degrees)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return z + first + second


@dataclass(frozen=True)
class Summary:
    """n values: their mean and, from two on, their sample standard deviation (n - 1)."""

    n: int
    mean: float | None
    sd: float | None


def summarise(values: Sequence[float | None]) -> Summary:
    """Values that are None (not finite when they were measured) leave the mean unknown rather than flattered."""
    if not values or any(value is None for value in values):
        return Summary(len(values), None, None)
    known = [float(value) for value in values if value is not None]
    mean = math.fsum(known) / len(known)
    if len(known) < 2:
        return Summary(1, mean, None)
    return Summary(len(known), mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1)))


@dataclass(frozen=True)
class Difference:
    """Mean difference over pairs; `low` and `high` bound it with 95 % confidence where there are two pairs or more."""

    pairs: int
    mean: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """The interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_difference(these: Mapping[Seed, float], those: Mapping[Seed, float]) -> Difference | None:
    """`these` minus `those` over the seeds that both have; None where they share none.

    The interval is Student's over the differences, which a seed's luck with data and initial weights drops out of.
    """
    seeds = sorted(set(these) & set(those))
    if not seeds:
        return None
    summary = summarise([these[seed] - those[seed] for seed in seeds])
    assert summary.mean is not None
    if summary.sd is None:
        return Difference(1, summary.mean, None, None)
    # seeds that differ by rounding alone would make an interval of no width around it
    rounding = max(ABSOLUTE, RELATIVE * max(abs(those[seed]) for seed in seeds))
    half = max(t_975(summary.n - 1) * summary.sd / math.sqrt(summary.n), rounding)
    return Difference(summary.n, summary.mean, summary.mean - half, summary.mean + half)


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """Indices, by rising cost, of the (cost, accuracy) points that no other beats.

    One point beats another where it is at least as good in both and better in one. What differs by rounding alone is
    equal, and equal points are both kept.
    """

    def beaten(index: int, by: int) -> bool:
        (cost, accuracy), (other_cost, other_accuracy) = points[index], points[by]
        cheaper, more_accurate = better(other_cost, cost, False), better(other_accuracy, accuracy, higher_is_better)
        dearer, less_accurate = better(cost, other_cost, False), better(accuracy, other_accuracy, higher_is_better)
        return (cheaper or more_accurate) and not dearer and not less_accurate

    front = [i for i in range(len(points)) if not any(beaten(i, j) for j in range(len(points)) if j != i)]
    sign = -1.0 if higher_is_better else 1.0
    return sorted(front, key=lambda i: (points[i][0], sign * points[i][1]))
