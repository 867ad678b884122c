"""Recall: answers alone count, by a decoder or an encoder; accuracy by distance; what a window cannot reach."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from longspan.attention import full, local
from longspan.config.errors import ConfigError
from longspan.data import AssociativeRecallDataModule, NeedleDataModule
from longspan.models import transformer
from longspan.tasks import Recall, TokenLabelling, adamw, build_task, warmup_constant
from longspan.tasks.breakdown import BREAKDOWN
from longspan.tasks.metrics import ShareByDistance

DISTANCE, LENGTH, VALUES = 24, 48, 8


def needle(**settings):
    small = {"max_length": LENGTH, "distance": DISTANCE, "needles": 6, "values": VALUES, "keys": 8, "batch_size": 16}
    return NeedleDataModule(**{**small, "max_validation_windows": 16, "max_test_windows": 32, **settings})


def recall(data, attention=full, **settings):
    torch.manual_seed(0)
    return build_task(
        partial(Recall, **settings),
        model=partial(transformer, layers=2, width=32, heads=2),
        attention=partial(attention, backend="dense") if attention is full else attention,
        data=data,
        optimizer=partial(adamw, lr=1e-2),
        scheduler=partial(warmup_constant, warmup_steps=10),
    )


def run(make_trainer, data, task, steps):
    trainer = make_trainer(max_steps=steps, max_epochs=-1, num_sanity_val_steps=0)
    trainer.fit(task, data)
    (figures,) = trainer.test(task, data, verbose=False)
    return figures["test/accuracy"]


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
def test_full_attention_solves_a_needle(make_trainer, causal):
    data = needle()
    task = recall(data, causal=causal)
    assert run(make_trainer, data, task, 80) > 0.95
    (row,) = task.breakdowns["accuracy_by_distance"]["test"]
    assert row["distance"] == DISTANCE and row["answers"] == 32 * 6 and row["accuracy"] > 0.95


def test_windows_shorter_than_the_distance_stay_at_chance(make_trainer):
    data = needle()
    blind = partial(local, window=DISTANCE // 2, backend="dense")  # two layers reach 2 * (window - 1) back, 22 of 24
    reaching = partial(local, window=DISTANCE + 1, backend="dense")
    chance = data.baselines()["accuracy"]
    assert chance == 1 / VALUES
    assert run(make_trainer, data, recall(data, blind), 80) < 2 * chance
    assert run(make_trainer, data, recall(data, reaching), 80) > 0.95


def test_the_loss_is_that_of_the_answers_alone():
    data = AssociativeRecallDataModule(pairs=4, max_length=32, batch_size=3)
    task = recall(data)
    batch = next(iter(data.train_dataloader()))
    step = task.step(batch, 0, "val")
    logits = task(batch["tokens"])  # (B, T, V)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert torch.allclose(step.loss, expected, atol=1e-6) and int(step.count) == 12
    right, distances = step.updates[BREAKDOWN]
    assert len(right) == len(distances) == 12 and (distances > 0).all()
    silent = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    loss = task.step(silent, 0, "val").loss
    assert loss == 0 and loss.requires_grad


def test_a_decoder_by_default_an_encoder_where_asked_and_never_the_other():
    data = needle()
    assert recall(data).model.causal and not recall(data, causal=False).model.causal
    with pytest.raises(ConfigError, match=r"task\.causal=False: the model is a Decoder; give True"):
        Recall(recall(data).model.backbone, causal=False)


def test_token_labelling_serves_too(make_trainer):
    data = needle()
    task = build_task(
        TokenLabelling,
        model=partial(transformer, layers=1, width=32, heads=2),
        attention=partial(full, backend="dense"),
        data=data,
    )
    trainer = make_trainer(max_steps=2, max_epochs=-1)
    trainer.fit(task, data)
    assert 0 <= trainer.test(task, data, verbose=False)[0]["test/accuracy"] <= 1
    assert set(task.metrics_info) <= set(data.baselines())


def test_by_distance_counts_halves_of_doublings():
    metric = ShareByDistance()
    metric.update(torch.tensor([True, False, True, True]), torch.tensor([1, 2, 3, 4]))
    metric.update(torch.tensor([False, False, True, True]), torch.tensor([5, 1 << 20, 512, 767]))
    metric.update(torch.tensor([True, False, True, False]), torch.tensor([768, 1023, 1024, 1 << 50]))
    assert metric.rows() == [
        {"distance": 1.0, "accuracy": 1.0, "answers": 1},
        {"distance": 2.0, "accuracy": 0.0, "answers": 1},
        {"distance": 3.0, "accuracy": 1.0, "answers": 1},
        {"distance": 4.5, "accuracy": 0.5, "answers": 2},
        {"distance": 639.5, "accuracy": 1.0, "answers": 2},
        {"distance": 895.5, "accuracy": 0.5, "answers": 2},
        {"distance": 1024.0, "accuracy": 1.0, "answers": 1},
        {"distance": 2.0**20, "accuracy": 0.0, "answers": 1},
        {"distance": 2.0**50, "accuracy": 0.0, "answers": 1},
    ]


def test_the_record_learns_of_distances(make_trainer):
    data = AssociativeRecallDataModule(
        pairs=2, max_length=32, batch_size=4, max_validation_windows=8, max_test_windows=4, epoch_windows=8
    )
    task = recall(data)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(task, data)
    (callback,) = (callback for callback in trainer.callbacks if hasattr(callback, "record_extra"))
    rows = callback.record_extra()["accuracy_by_distance"]["val"]
    assert sum(row["answers"] for row in rows) == 16  # of one validation, not of all so far
    trainer.test(task, data, verbose=False)
    assert sum(row["answers"] for row in callback.record_extra()["accuracy_by_distance"]["test"]) == 8
