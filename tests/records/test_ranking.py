"""Figures that differ by rounding alone tie, wherever two are ranked."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.records import Accuracy
from longspan.records.ranking import better, tied
from longspan.report.statistics import paired_difference, pareto_front
from longspan.training.callbacks.best_checkpoint import BestCheckpoint

figures = st.floats(-1e12, 1e12) | st.floats(-1, 1)


@given(figures, figures, st.booleans())
def test_one_is_better_or_the_other_or_they_tie(one, other, higher):
    assert better(one, other, higher) + better(other, one, higher) + tied(one, other) == 1
    assert better(one, other, higher) == better(other, one, not higher)


def test_the_majority_class_does_not_beat_itself():
    """Accuracies of 0.52409309149 and 0.52409306980: the same predictions, summed in another order."""
    assert Accuracy(value=0.52409309149, baseline=0.52409306980, higher_is_better=True).beats_baseline is False
    assert Accuracy(value=0.52409306980, baseline=0.52409309149, higher_is_better=False).beats_baseline is False
    assert Accuracy(value=1e-9, baseline=0, higher_is_better=True).beats_baseline is False
    assert Accuracy(value=0.5242, baseline=0.5241, higher_is_better=True).beats_baseline is True
    assert not better(math.nan, 1.0, True) and not better(1.0, math.nan, True)


def test_both_of_a_tie_are_on_the_front():
    assert pareto_front([(1.0, 0.5), (1.0 + 1e-9, 0.5 + 1e-9), (2.0, 0.5 + 2e-9), (3.0, 0.6)]) == [0, 1, 3]
    assert pareto_front([(1.0, 0.5), (2.0, 0.5 - 1e-9), (2.0, 0.4)], higher_is_better=False) == [0, 2]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8), st.booleans())
def test_the_front_is_what_nobody_beats(points, higher):
    sign = 1 if higher else -1
    front = pareto_front([(float(x), float(y)) for x, y in points], higher)
    for index, (x, y) in enumerate(points):
        beaten = any(a <= x and sign * b >= sign * y and (a, b) != (x, y) for a, b in points)
        assert (index in front) == (not beaten)


def test_a_difference_of_rounding_is_not_clear():
    these, those = {1: 0.5 + 1e-9, 2: 0.7 + 1e-9}, {1: 0.5, 2: 0.7}
    assert not paired_difference(these, those).is_clear
    assert paired_difference({1: 0.501, 2: 0.701}, those).is_clear


def test_the_earlier_of_two_equal_checkpoints_stays(tmp_path):
    keeper = BestCheckpoint(monitor="val/loss", mode="min", save_top_k=1, dirpath=str(tmp_path))
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    assert keeper.check_monitor_top_k(trainer, torch.tensor(0.5))
    keeper.best_k_models, keeper.kth_best_model_path = {"a.ckpt": torch.tensor(0.5)}, "a.ckpt"
    assert not keeper.check_monitor_top_k(trainer, torch.tensor(0.5 - 1e-8))
    assert keeper.check_monitor_top_k(trainer, torch.tensor(0.49))
