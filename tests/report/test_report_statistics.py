"""Statistics of a report, against brute force, hand computation and scipy where it is there."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.report.statistics import paired_difference, pareto_front, summarise, t_975

coordinates = st.integers(0, 6).map(float)  # few values, so that ties are common


def beaten(a, b, sign):
    """Whether b is at least as good as a in both, and better in one."""
    return b[0] <= a[0] and sign * b[1] >= sign * a[1] and (b[0] < a[0] or sign * b[1] > sign * a[1])


@given(st.lists(st.tuples(coordinates, coordinates), max_size=12), st.booleans())
def test_the_front_is_what_nothing_beats(points, higher):
    sign = 1 if higher else -1
    brute = {i for i, a in enumerate(points) if not any(beaten(a, b, sign) for b in points)}
    front = pareto_front(points, higher)
    assert set(front) == brute
    assert len(front) == len(brute)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_mean_and_sample_deviation():
    summary = summarise([1.0, 2.0, 4.0])
    assert (summary.n, summary.mean) == (3, pytest.approx(7 / 3))
    assert summary.sd == pytest.approx(math.sqrt(7 / 3))  # squares 16/9 + 1/9 + 25/9 = 42/9, over 2
    assert summarise([5.0]).sd is None
    assert summarise([]).mean is None
    assert summarise([1.0, None]).mean is None, "a NaN must not be dropped from a mean"


def test_a_paired_difference_by_hand():
    # differences 0.1, 0.3, 0.2 over the seeds that both have: mean 0.2, sd 0.1, half width 4.302653 * 0.1 / sqrt(3)
    found = paired_difference({0: 1.1, 1: 2.3, 2: 3.2, 7: 99.0}, {0: 1.0, 1: 2.0, 2: 3.0, 8: -99.0})
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.pairs == 3
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.2 - half, abs=1e-6), pytest.approx(0.2 + half, abs=1e-6))
    assert found.is_clear is False


def test_pairs_take_out_a_seed_s_luck():
    these, those = {s: 10.0 * s + 0.5 + 0.01 * (s % 2) for s in range(4)}, {s: 10.0 * s for s in range(4)}
    found = paired_difference(these, those)
    assert found.is_clear
    assert found.high - found.low < 0.1, "the spread over seeds is 10, that of the differences 0.01"


def test_one_pair_has_no_interval_and_none_no_difference():
    one = paired_difference({1: 2.0}, {1: 1.5})
    assert (one.pairs, one.mean, one.low, one.high, one.is_clear) == (1, 0.5, None, None, False)
    assert paired_difference({1: 2.0}, {2: 1.5}) is None


def test_t_quantiles():
    stats = pytest.importorskip("scipy.stats")
    for degrees in [*range(1, 61), 100, 1000, 10**6]:
        assert t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-4)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.floats(-1e3, 1e3))
def test_the_interval_is_scipy_s(values, shift):
    stats = pytest.importorskip("scipy.stats")
    these = {seed: value + shift for seed, value in enumerate(values)}
    those = dict(enumerate(values[::-1]))
    found = paired_difference(these, those)
    differences = [these[seed] - those[seed] for seed in these]
    deviation = summarise(differences).sd
    if deviation < 1e-9:
        return
    low, high = stats.t.interval(0.95, len(values) - 1, summarise(differences).mean, deviation / math.sqrt(len(values)))
    assert found.low == pytest.approx(low, rel=1e-4, abs=1e-4)
    assert found.high == pytest.approx(high, rel=1e-4, abs=1e-4)


def test_no_degrees_of_freedom_is_refused():
    with pytest.raises(ValueError, match="degrees"):
        t_975(0)
