"""Whole runs of attention that learns its pattern: the record, resuming across the hardening, evaluation, warm starts."""

import csv
import os
import signal
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from longspan import attention
from longspan.data import NeedleDataModule
from longspan.inference.evaluate import evaluate
from longspan.models import transformer
from longspan.records import Record
from longspan.tasks import Recall, build_task
from longspan.tasks.pattern_learning import pattern_learners

CONF = Path(__file__).parents[2] / "conf"
TINY = [
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "data.max_length=128",
    "data.batch_size=2",
    "data.max_train_windows=16",
    "data.max_validation_windows=4",
    "data.max_test_windows=4",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=4",
    "trainer.max_steps=12",
    "logger=csv",
]
LEARNED = [
    *TINY,
    "attention=learned",
    "attention.block_size=16",
    "attention.density=0.2",
    "attention.strides=[8]",
    "attention.update_every=2",
]
SPAN = [*TINY, "attention=adaptive_span", "attention.ramp=8", "attention.span_learning_rate=0.02"]
KINDS = pytest.mark.parametrize("words", [LEARNED, SPAN], ids=["learned", "adaptive_span"])


def logged(run: Path, name: str) -> dict[int, float]:
    with (run / "csv" / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@KINDS
def test_the_record_tells_density_and_what_hardening_cost(words, tmp_path, train):
    train(tmp_path, *words)
    record = Record.load(tmp_path)
    learned = record.extra["learned_pattern"]
    assert record.status == "complete"
    assert learned["hardened_at_step"] == (9 if words is LEARNED else 10)
    assert set(learned["before"]) == set(learned["after"]) == set(record.accuracy)
    assert learned["density"][-1] == [12, pytest.approx(learned["final_density"])]
    assert record.cost["density"].value == pytest.approx(learned["final_density"])
    assert len(learned["connections"]) == 2 and len(learned["connections"][0]) == 2
    assert (tmp_path / "patterns" / "layer1.png").stat().st_size > 1000
    density = logged(tmp_path, "train/density")
    if words is LEARNED:
        assert density[0] == pytest.approx(0.504, abs=0.01) and 0.1 < density[11] <= 0.2
        assert all(value == 0 for step, value in logged(tmp_path, "train/auxiliary_loss").items() if step < 3 or step > 8)
        curve, asked, visited = (
            dict(record.curves[f"cost/{name}"]) for name in ("density", "density_asked", "visited_density")
        )
        # steps of a curve count those that are done: the target is reached at 7.2
        assert asked[1] == pytest.approx(0.504, abs=0.01) and asked[8] > 0.2 and asked[9] == asked[12] == 0.2
        assert all(0.1 < curve[step] <= 1.2 * 0.2 for step in range(9, 13)) and curve[12] == density[11]
        assert all(visited[step] >= curve[step] for step in curve) and len(record.curves["cost/step_time"]) > 4
    assert any(value > 0 for value in logged(tmp_path, "train/auxiliary_loss").values())
    # the pattern that the record draws is the one that came out
    sketches = record.extra["pattern"]
    assert sorted(layer for sketch in sketches for layer in sketch["layers"]) == [0, 1]
    closed = sum(row.count("0") for sketch in sketches for row in sketch["rows"])
    assert closed > 0.55 * sum(len(row) for sketch in sketches for row in sketch["rows"])  # causal alone: half


@KINDS
def test_the_best_checkpoint_is_a_hardened_one_and_evaluates_alike(words, tmp_path, train):
    train(tmp_path, *words)
    found = list((tmp_path / "checkpoints").glob("best*.ckpt"))
    assert [path.name for path in found] == ["best-step12.ckpt"]
    again = evaluate(str(found[0]), [], CONF)
    assert again.accuracy == Record.load(tmp_path).accuracy


class SignalAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [5, 10], ids=["gated", "hardened"])
@KINDS
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(words, stop, tmp_path, train, monkeypatch):
    from longspan.training import run

    train(tmp_path / "whole", *words)
    always = run.always
    with monkeypatch.context() as patch:
        patch.setattr(run, "always", lambda *args: [*always(*args), SignalAt(stop)])
        with pytest.raises(SystemExit):
            train(tmp_path / "first", *words)
    checkpoint = next((tmp_path / "first" / "checkpoints").glob("interrupted*.ckpt"))
    train(tmp_path / "second", *words, f"ckpt_path={checkpoint}")
    for name in ("train/loss", "train/density", "train/auxiliary_loss"):
        whole, second = (logged(tmp_path / run, name) for run in ("whole", "second"))
        assert second == {step: value for step, value in whole.items() if step > stop}
    records = [Record.load(tmp_path / run) for run in ("whole", "second")]
    assert records[0].accuracy == records[1].accuracy
    assert records[0].extra["learned_pattern"] == records[1].extra["learned_pattern"]


def test_a_pattern_starts_another_run_and_full_attention_starts_a_pattern(tmp_path, train):
    train(tmp_path / "full", *TINY, "attention=full", "trainer.max_steps=2")
    start = tmp_path / "full" / "checkpoints" / "last.ckpt"
    train(tmp_path / "learned", *LEARNED, f"init_from={start}")
    pattern = tmp_path / "learned" / "checkpoints" / "last.ckpt"
    train(tmp_path / "again", *LEARNED, f"init_from={pattern}", "trainer.max_steps=2")
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (pattern, tmp_path / "again/checkpoints/last.ckpt")]
    name = "model.backbone.blocks.0.mixer.attention.open"
    assert states[0][name].equal(states[1][name])
    assert Record.load(tmp_path / "again").cost["density"].value <= 0.2


def test_a_run_too_short_for_its_schedule_hardens_all_the_same(tmp_path, train):
    train(
        tmp_path,
        *LEARNED,
        "trainer.max_epochs=1",
        "trainer.max_steps=-1",
        "attention.harden_at=1.0",
        "attention.reached_at=1.0",
    )
    assert Record.load(tmp_path).extra["learned_pattern"]["hardened_at_step"] == 7
    assert Record.load(tmp_path).cost["density"].value <= 0.2


def test_averaged_weights_keep_the_pattern(tmp_path, train):
    train(tmp_path, *LEARNED, "callbacks=ema")
    best = next((tmp_path / "checkpoints").glob("best*.ckpt"))
    assert evaluate(str(best), [], CONF).accuracy == Record.load(tmp_path).accuracy
    assert Record.load(tmp_path).cost["density"].value <= 0.2


def test_recall_drives_the_pattern_too(tmp_path, train):
    small = ["data.max_length=64", "data.needles=2", *(word for word in TINY if word.startswith("data.max_v"))]
    small += ["data.batch_size=2", "data.max_test_windows=4"]
    model = ["model.layers=1", "model.width=32", "model.heads=2", "attention.block_size=16", "logger=none"]
    train(tmp_path, "experiment=learned_needle", *small, *model, "trainer.max_steps=4", "trainer.val_check_interval=2")
    record = Record.load(tmp_path)
    assert set(record.extra["learned_pattern"]["after"]) == {"accuracy"} and "accuracy_by_distance" in record.extra
    assert record.cost["density"].value <= 0.1


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
@pytest.mark.parametrize("strides", [[], [8]])
def test_a_models_first_step_is_that_of_full_attention(causal, strides):
    data = NeedleDataModule(max_length=96, needles=2, distance=48, batch_size=4)
    learned = partial(attention.learned, block_size=16, strides=strides, stride_from=2, density=0.2)
    steps = []
    for chosen in (attention.full, learned):
        torch.manual_seed(0)
        model = partial(transformer, layers=2, width=32, heads=2)
        task = build_task(partial(Recall, causal=causal), model=model, attention=chosen, data=data).double().train()
        for module in pattern_learners(task):
            module.begin_step(0, 100)
        loss = task.step(next(iter(data.train_dataloader())), 0, "train").loss
        steps.append((loss + sum(module.auxiliary_loss() for module in pattern_learners(task)), task))
    (full, task), (gated, gated_task) = steps
    assert len(pattern_learners(gated_task)) == 2 and full > 1
    # losses are in float32
    torch.testing.assert_close(full.double(), gated.double(), atol=0, rtol=2e-7)
    full.backward()
    gated.backward()
    gradients = dict(gated_task.named_parameters())
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.pop(name).grad, atol=1e-8, rtol=1e-6)
    assert all(name.endswith("log_alpha") for name in gradients)  # the gates are all that full attention lacks
