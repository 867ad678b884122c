"""Accuracy by length: what stands before a token, on its shorter side, or in its sequence."""

from __future__ import annotations

import math

import pytest
import torch

from longspan.tasks.breakdown import MeanByLength, nearer_side, places_before


def test_means_are_of_doublings_and_over_batches():
    metric = MeanByLength("bits_per_byte", "bytes before it", higher_is_better=False)
    metric.update(torch.tensor([4.0, 3.0, 2.0]), torch.tensor([0, 1, 2]))
    metric.update(torch.tensor([1.0, 0.5]), torch.tensor([3, 1 << 20]))
    assert metric.rows() == [
        {"length": 0.0, "value": 4.0, "items": 1},
        {"length": 1.0, "value": 3.0, "items": 1},
        {"length": 2.5, "value": 1.5, "items": 2},
        {"length": 2.0**20, "value": 0.5, "items": 1},
    ]


def test_what_a_token_may_see():
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    assert places_before(tokens).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert nearer_side(tokens, None).tolist() == [[0, 1, 2, 1, 0]] * 2
    assert nearer_side(tokens, torch.tensor([5, 3])).tolist() == [[0, 1, 2, 1, 0], [0, 1, 0, 0, 0]]  # past the end: 0


@pytest.mark.parametrize("name", ["language_modelling", "masked_modelling", "single_label", "multi_label", "token_labelling"])
def test_the_parts_come_to_the_whole(name, make_task, make_data, make_trainer):
    """Weighted by their items, the rows give the figure of the whole split."""
    data, task = make_data(name), make_task(name)
    trainer = make_trainer(max_steps=1, max_epochs=-1)
    trainer.fit(task, data)
    (figures,) = trainer.test(task, data, verbose=False)
    told = task.breakdowns["accuracy_by_length"]["test"]
    items = sum(row["items"] for row in told["rows"])
    mean = sum(row["value"] * row["items"] for row in told["rows"]) / items
    if name == "multi_label":  # the share of decisions, where `accuracy` is the mean over labels of as many sequences
        assert 0 <= mean <= 1 and items == len(data.rows)
    else:
        assert math.isclose(mean, figures[f"test/{told['figure']}"], rel_tol=1e-5)
    assert told["higher_is_better"] == task.metrics_info.get(told["figure"])
    longest = max(row["length"] for row in told["rows"])
    assert longest <= data.max_length


def test_each_evaluation_stands_alone(make_task, make_data, make_trainer):
    data, task = make_data("language_modelling"), make_task("language_modelling")
    trainer = make_trainer(max_epochs=2)
    trainer.fit(task, data)
    known = task.breakdowns["accuracy_by_length"]["val"]["rows"]
    trainer.validate(task, data, verbose=False)
    assert [row["items"] for row in task.breakdowns["accuracy_by_length"]["val"]["rows"]] == [row["items"] for row in known]
