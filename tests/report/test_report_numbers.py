"""Figures as people read them, and labels that cover nothing."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.report.numbers import MISSING, duration, measure, plain_number, prefixed, with_spread
from longspan.report.placement import Box, place_labels


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.81234, "0.8123"),
        (2.5, "2.500"),
        (0.0, "0"),
        (12345, "12,345"),
        (1234.5, "1,234"),
        (0.000012, "1.20e-05"),
        (16777216, "16.78 M"),
        (None, MISSING),
        (math.nan, MISSING),
    ],
)
def test_plain_numbers(value, text):
    assert plain_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 "), (1000, "1 k"), (999_999, "1 M"), (8.1e16, "81 P"), (1.234e12, "1.23 T"), (3e26, "300 Y")]
)
def test_prefixes(value, text):
    assert prefixed(value).strip() == text.strip()


@given(st.floats(1e-3, 1e24))
def test_a_prefixed_figure_means_what_it_was(value):
    powers = dict(zip(("", "k", "M", "G", "T", "P", "E", "Z", "Y"), range(9), strict=True))
    number, _, prefix = prefixed(value).partition(" ")
    assert float(number) * 1000.0 ** powers[prefix] == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (2.19912, 0.0194, "2.199 ± 0.019"),
        (0.5, None, "0.5000"),
        (120.4, 12.3, "120 ± 12"),
        (1.0, 0.0, "1.000 ± 0"),
        (None, None, MISSING),
    ],
)
def test_spreads(mean, sd, text):
    assert with_spread(mean, sd) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.26, "4.26 s"), (59.99, "60 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34, "ms a step", "12.3 ms a step"),
        (540.2, "MiB resident in the process", "540 MiB resident in the process"),
        (20480.0, "MiB", "20.0 GiB"),
        (1234.0, "J", "1.23 kJ"),
        (8300.0, "tokens/s", "8.3 k tokens/s"),
        (0.41, "of peak", "41.0 %"),
    ],
)
def test_measures(value, unit, text):
    assert measure(value, unit) == text


FRAME = Box(0, 0, 800, 500)


@given(st.lists(st.tuples(st.floats(60, 740), st.floats(40, 460)), min_size=1, max_size=6, unique=True))
def test_labels_stay_in_the_frame(points):
    boxes = place_labels(points, [(60, 14)] * len(points), FRAME)
    assert all(box.outside(FRAME) < 1 for box in boxes)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 9), st.floats(0, 30))
def test_labels_of_a_row_of_points_do_not_cover_each_other(number, apart):
    points = [(300 + index * apart, 250 + 3.0 * index) for index in range(number)]
    boxes = place_labels(points, [(70, 14)] * number, FRAME)
    for index, box in enumerate(boxes):
        assert all(box.overlap(other) < 5 for other in boxes[index + 1 :])
