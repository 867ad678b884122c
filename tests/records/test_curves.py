"""Curves stay small, keep their ends, and do not count a step twice."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.records.curves import Curves


@given(st.integers(1, 3000), st.integers(4, 60))
def test_a_curve_stays_within_its_limit_and_keeps_both_ends(number, limit):
    curves = Curves(limit)
    for step in range(number):
        curves.add("loss", step, step / 2)
    points = curves.as_dict()["loss"]
    assert len(points) <= limit
    assert points[0] == (0, 0.0)
    assert points[-1] == (number - 1, (number - 1) / 2)
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert all(value == step / 2 for step, value in points)


def test_going_back_replaces_what_came_after():
    curves = Curves()
    for step, value in [(1, 1.0), (2, 2.0), (3, 3.0), (2, 9.0), (4, math.nan)]:
        curves.add("loss", step, value)
    assert curves.as_dict()["loss"] == [(1, 1.0), (2, 9.0), (4, None)]


def test_a_limit_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 4"):
        Curves(2)
