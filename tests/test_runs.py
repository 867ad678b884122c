"""Whole runs in this process: resuming, interrupting, failing, evaluating, going on with another task."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from longspan.config.errors import CheckpointError, ConfigError
from longspan.inference.evaluate import evaluate
from longspan.inference.predict import predict
from longspan.records import Record

CONF = Path(__file__).parents[1] / "conf"
TINY = [
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.dropout=0.1",
    "data.max_length=128",
    "data.batch_size=2",
    "data.max_validation_windows=4",
    "data.max_test_windows=4",
    "attention.block_size=16",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=2",
]
LM = [*TINY, "data.max_train_windows=12", "logger=csv"]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step, as logged."""
    with (run / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): float(row["train/loss"]) for row in rows if row.get("train/loss")}


class SignalAt(pl.Callback):
    """Sends this process a signal while the batch after `step` optimizer steps is in hand."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def signal_at(monkeypatch):
    """Adds `SignalAt` to the callbacks that every run has."""

    def add(step: int, number: int) -> None:
        from longspan.training import run

        always = run.always
        monkeypatch.setattr(run, "always", lambda *args: [*always(*args), SignalAt(step, number)])

    return add


def test_testing_the_best_checkpoint_does_not_turn_the_record_back(tmp_path, train):
    """Validation gets worse after the second step, so the best checkpoint is an early one."""
    harmful = ["optimizer.lr=5", "scheduler=warmup_constant", "scheduler.warmup_steps=0", "trainer.max_steps=6"]
    train(tmp_path / "tested", *LM, *harmful)
    train(tmp_path / "untested", *LM, *harmful, "test=false")
    assert "step6" not in best(tmp_path / "tested").name
    tested, untested = (Record.load(tmp_path / name) for name in ("tested", "untested"))
    assert [step for step, _ in tested.curves["val/bits_per_byte"]] == [2, 4, 6]
    assert tested.curves["train/loss"] == untested.curves["train/loss"]
    for name in ("tokens", "total_flops"):
        assert tested.cost[name] == untested.cost[name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("stop", [3, 8], ids=["first-epoch", "second-epoch"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, train, signal_at, number, stop, monkeypatch):
    train(tmp_path / "whole", *LM, "trainer.max_steps=10")
    with monkeypatch.context():
        signal_at(stop, number)
        with pytest.raises(SystemExit) as caught:
            train(tmp_path / "first", *LM, "trainer.max_steps=10")
    monkeypatch.undo()
    assert caught.value.code
    assert Record.load(tmp_path / "first").status == "interrupted"
    checkpoint = tmp_path / "first" / "checkpoints" / "interrupted.ckpt"
    train(tmp_path / "second", *LM, "trainer.max_steps=10", f"ckpt_path={checkpoint}")
    whole, first, second = (losses(tmp_path / name) for name in ("whole", "first", "second"))
    assert list(whole) == list(range(10)) and len(set(whole.values())) == 10
    assert {**first, **second} == whole and set(second) == set(range(stop + 1, 10))
    for name in Record.load(tmp_path / "whole").accuracy:
        assert Record.load(tmp_path / "whole").accuracy[name] == Record.load(tmp_path / "second").accuracy[name]


def test_a_resumed_run_remembers_a_better_checkpoint(tmp_path, train, signal_at, monkeypatch):
    harmful = ["optimizer.lr=5", "scheduler=warmup_constant", "scheduler.warmup_steps=0", "trainer.max_steps=6"]
    train(tmp_path / "whole", *LM, *harmful)
    with monkeypatch.context():
        signal_at(4, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(tmp_path / "first", *LM, *harmful)
    monkeypatch.undo()
    checkpoint = tmp_path / "first" / "checkpoints" / "interrupted.ckpt"
    train(tmp_path / "second", *LM, *harmful, f"ckpt_path={checkpoint}")
    assert best(tmp_path / "first").name == best(tmp_path / "whole").name
    assert Record.load(tmp_path / "second").accuracy == Record.load(tmp_path / "whole").accuracy


@pytest.fixture(scope="module")
def language_run(tmp_path_factory) -> Path:
    from longspan.config.compose import config_for
    from longspan.training.run import run

    folder = tmp_path_factory.mktemp("language")
    run(config_for([*LM, "trainer.max_steps=4"], folder, CONF))
    return folder


def best(run: Path) -> Path:
    return next((run / "checkpoints").glob("best*.ckpt"))


def test_evaluation_gives_the_figures_of_the_run(language_run):
    ended = Record.load(language_run)
    again = evaluate(str(best(language_run)), [], CONF)
    assert again.accuracy == ended.accuracy
    assert all(metric.split == "test" for metric in again.accuracy.values())
    validation = evaluate(str(best(language_run)), ["data.batch_size=1"], CONF, split="val")
    assert validation.accuracy["bits_per_byte"].value != ended.accuracy["bits_per_byte"].value


def test_a_checkpoint_is_plain_and_rebuilds_without_its_run(language_run):
    checkpoint = torch.load(best(language_run), weights_only=True)
    assert checkpoint["longspan_config"]["data"]["max_length"] == 128
    assert json.dumps(checkpoint["longspan_config"]) and json.dumps(checkpoint["longspan_facts"])


def test_scores_of_own_texts(language_run, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "short.txt").write_text("fellow citizens")
    (tmp_path / "texts" / "long.txt").write_text("of the Senate and of the House " * 20)
    rows = predict(str(best(language_run)), [f"data.path={tmp_path / 'texts'}"], CONF, str(tmp_path / "out.csv"))
    with (tmp_path / "out.csv").open() as file:
        scored = {row["id"]: row for row in csv.DictReader(file)}
    assert rows == 2
    # the first byte is predicted too, from the mark of the beginning
    assert {name: int(row["tokens"]) for name, row in scored.items()} == {"short.txt": 15, "long.txt": 620}
    assert all(0 < float(row["bits_per_token"]) < 20 for row in scored.values())


def test_predictions_need_a_path_and_a_known_suffix(language_run, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path"):
        predict(str(best(language_run)), [], CONF, str(tmp_path / "out.csv"))
    with pytest.raises(ConfigError, match=r"\.jsonl"):
        predict(str(best(language_run)), [], CONF, str(tmp_path / "out.xlsx"))
    with pytest.raises(CheckpointError, match="does not exist"):
        predict("nowhere.ckpt", [], CONF, str(tmp_path / "out.csv"))


def test_genes_of_own_genome_as_bed(tmp_path, train):
    train(
        tmp_path / "run",
        "experiment=h37rv_genes",
        *TINY,
        "data.max_train_windows=4",
        "trainer.max_steps=2",
        "logger=none",
    )
    genome = tmp_path / "own.fa"
    genome.write_text(">one\n" + "ACGTTGCA" * 50 + "\n>two\nACGTAC\n")
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    predict(checkpoint, [f"data.path={genome}"], CONF, str(tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for name, length in (("one", 400), ("two", 6)):
        own = [row for row in rows if row["id"] == name]
        ends = [row["end"] for row in own]
        assert [row["start"] for row in own] == [0, *ends[:-1]] and ends[-1] == length
        assert all(a["label"] != b["label"] for a, b in itertools.pairwise(own))
    predict(checkpoint, [f"data.path={genome}"], CONF, str(tmp_path / "out.bed"))
    bed = [line.split("\t") for line in (tmp_path / "out.bed").read_text().splitlines()]
    genes = [row for row in rows if row["class"]]
    assert [(line[0], int(line[1]), int(line[2])) for line in bed] == [(r["id"], r["start"], r["end"]) for r in genes]
    assert all(line[3].endswith(line[5]) for line in bed)


def test_another_task_and_attention_start_from_a_runs_weights(tmp_path, train):
    small = [*TINY, "trainer.max_steps=2", "data.max_train_windows=4", "logger=none"]
    train(tmp_path / "masked", "experiment=h37rv_masked", *small)
    start = tmp_path / "masked" / "checkpoints" / "last.ckpt"
    other = [word for word in small if not word.startswith("attention.")]
    frozen = "optimizer.lr=1e-12"
    train(tmp_path / "genes", "experiment=h37rv_genes", "attention=local", *other, frozen, f"init_from={start}")
    masked = torch.load(start, weights_only=True)["state_dict"]
    genes = torch.load(tmp_path / "genes" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.allclose(genes["model.backbone.embedding.weight"], masked["model.backbone.embedding.weight"])


def test_a_record_is_left_by_a_run_that_fails(tmp_path, train):
    with pytest.raises(Exception, match="no_such_folder"):
        train(tmp_path, *LM, "data.path=no_such_folder/*.txt")
    record = Record.load(tmp_path)
    assert record.status == "failed" and "no_such_folder" in str(record.error)
    assert record.config["data"]["path"] == "no_such_folder/*.txt"


def test_a_gpu_that_is_not_there_is_refused_at_once(tmp_path, train):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="trainer=default"):
        train(tmp_path, *LM, "trainer=gpu")
    assert Record.load(tmp_path).status == "failed"


def test_a_setting_that_its_target_does_not_take_is_refused(tmp_path, train):
    with pytest.raises(ConfigError, match=r"Did you mean data\.batch_size"):
        train(tmp_path, *LM, "+data.batchsize=2")


def test_the_seed_decides_everything(tmp_path, train):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, *LM, "trainer.max_steps=3", f"seed={seed}", "test=false")
    first, same, other = (losses(tmp_path / name) for name in "abc")
    assert first == same and first != other


def test_train_py_stays_short():
    assert len((CONF.parent / "train.py").read_text().splitlines()) < 60
