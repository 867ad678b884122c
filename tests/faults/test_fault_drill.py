"""What a night does to runs: kills, a full disk, spoiled files, NaN, preemption. What was finished is still there."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from killed_run import flip, in_child, losses, report, steps_taken, train, train_in_environment

from longspan.config.errors import CheckpointError
from longspan.records import Record
from longspan.training.callbacks.checkpoint_config import load_checkpoint
from longspan.training.checkpoint_files import damage
from longspan.training.resume import by_age, resume_from

KILLED = -signal.SIGKILL
STEPS = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert in_child(train, folder) == 0
    assert sorted(losses(folder)) == list(range(1, STEPS + 1))
    return folder


def assert_ended_as(whole: Path, folder: Path) -> None:
    """Every step as in the undisturbed run, the same figures at the end, and costs counted once."""
    assert losses(folder) == losses(whole)
    ended, undisturbed = Record.load(folder), Record.load(whole)
    assert ended.status == "complete"
    assert ended.accuracy == undisturbed.accuracy
    for name in ("total_flops", "live_pairs", "tokens"):
        assert ended.cost[name] == undisturbed.cost[name], name


def test_a_run_killed_in_the_middle_of_an_epoch_goes_on(whole, tmp_path):
    assert in_child(train, tmp_path, "ckpt_path=auto", at=("signal", 8, signal.SIGKILL)) == KILLED
    left = Record.load(tmp_path)
    assert left.status == "interrupted" and "killed" in str(left.error)
    assert left.accuracy and left.curves["train/loss"], "the figures of the last validation are in the record"
    assert in_child(train, tmp_path, "ckpt_path=auto") == 0
    assert steps_taken(tmp_path) == [*range(1, 9), 9, 10]
    assert_ended_as(whole, tmp_path)


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_kill_in_the_middle_of_writing_a_checkpoint_leaves_the_one_before(whole, tmp_path, name):
    assert in_child(train, tmp_path, at=("write", name, 3)) == KILLED
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        load_checkpoint(path)
    assert in_child(train, tmp_path, "ckpt_path=auto") == 0
    assert_ended_as(whole, tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*")), "half-written files are cleared away"


def test_a_run_killed_after_its_training_keeps_the_costs_of_its_training(whole, tmp_path):
    assert in_child(train, tmp_path, "test=false") == 0
    trained = Record.load(tmp_path)
    record = trained.model_copy(update={"status": "interrupted", "error": "killed before the test"})
    record.save(tmp_path / "record.json")
    assert in_child(train, tmp_path, "test=false", "ckpt_path=auto") == 0
    again = Record.load(tmp_path)
    assert again.status == "complete" and again.accuracy == trained.accuracy
    assert again.cost.keys() >= trained.cost.keys()
    assert again.cost["step_time"] == trained.cost["step_time"] and again.cost["tokens"] == trained.cost["tokens"]


def test_a_full_disk_stops_the_run_and_spares_the_checkpoint_before(whole, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    assert in_child(train, tmp_path, "trainer.max_steps=10", at=("signal", 5, signal.SIGKILL)) == KILLED
    before = (checkpoints / "last.ckpt").read_bytes()
    for name in ("last", "best-step6", "best-step8", "best-step10"):
        (checkpoints / f".{name}.ckpt.partial").symlink_to("/dev/full")  # whose every write fails for want of room
    log = tmp_path / "log.txt"
    assert in_child(train, tmp_path, "ckpt_path=auto", log=log) == 1
    record = Record.load(tmp_path)
    assert record.status == "failed"
    assert "No space left on device" in record.error and "ckpt_path=auto" in record.error
    assert "the others of its folder stand" in record.error
    assert (checkpoints / "last.ckpt").read_bytes() == before
    for path in checkpoints.glob(".*.partial"):
        path.unlink()
    assert in_child(train, tmp_path, "ckpt_path=auto") == 0
    assert_ended_as(whole, tmp_path)


def test_a_record_that_the_disk_refuses_costs_a_warning(whole, tmp_path, monkeypatch):
    from longspan.records import atomic

    record = Record.load(whole)
    path = record.save(tmp_path / "record.json")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            record.model_copy(update={"seed": 5}).save(path)
    assert Record.load(path) == record and [file.name for file in tmp_path.iterdir()] == ["record.json"]


@pytest.fixture
def stopped(tmp_path) -> Path:
    """A run killed after its third validation."""
    assert in_child(train, tmp_path, at=("signal", 7, signal.SIGKILL)) == KILLED
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flip, cut, empty])
def test_a_spoiled_checkpoint_is_named_and_the_one_before_is_taken(stopped, spoil, caplog, monkeypatch):
    # a run configured by Hydra in the same process switches off loggers that were there before it
    monkeypatch.setattr(logging.getLogger("longspan.training.resume"), "disabled", False)
    checkpoints = stopped / "checkpoints"
    newest = by_age(checkpoints)[0]
    spoil(newest)
    for asked in ("auto", str(newest)):
        caplog.clear()
        config = {**load_checkpoint(by_age(checkpoints)[-1])["longspan_config"], "ckpt_path": asked}
        taken = resume_from(config)
        assert taken is not None and Path(taken) != newest and load_checkpoint(taken)["global_step"] >= 4
        assert f"{newest} is damaged" in caplog.text and str(taken) in caplog.text
    with pytest.raises(CheckpointError, match=f"{newest.name} is damaged"):
        load_checkpoint(newest)


def test_a_run_goes_on_over_a_spoiled_checkpoint(whole, stopped):
    for name in ("last", "best-step6"):
        flip(stopped / "checkpoints" / f"{name}.ckpt")
    assert in_child(train, stopped, "ckpt_path=auto") == 0
    assert steps_taken(stopped) == [*range(1, 8), *range(5, 11)]
    assert_ended_as(whole, stopped)


def test_a_spoiled_best_checkpoint_is_named_and_not_tested(whole, tmp_path):
    log = tmp_path / "log.txt"
    assert in_child(train, tmp_path, at=("spoil",), log=log) == 0
    assert "is damaged" in log.read_text() and "testing the weights at the end" in log.read_text()
    record, unspoilt = Record.load(tmp_path), Record.load(whole)
    value = record.accuracy[str(record.primary_metric)].value
    assert value == pytest.approx(unspoilt.accuracy[str(record.primary_metric)].value, rel=0.2)
    spoilt = next(path for path in (tmp_path / "checkpoints").glob("best-*.ckpt") if damage(path) is not None)
    (tmp_path / "next").mkdir()
    assert in_child(train, tmp_path / "next", f"init_from={spoilt}", log=log) != 0
    assert f"init_from={spoilt} is damaged" in log.read_text()


def test_nothing_but_spoiled_checkpoints_is_refused(stopped):
    config = {**load_checkpoint(stopped / "checkpoints" / "last.ckpt")["longspan_config"], "ckpt_path": "auto"}
    for path in (stopped / "checkpoints").glob("*.ckpt"):
        flip(path)
    with pytest.raises(CheckpointError, match="every checkpoint") as caught:
        resume_from(config)
    assert "ckpt_path=null" in str(caught.value)


def test_a_folder_of_other_settings_is_not_gone_on_with(stopped):
    config = load_checkpoint(stopped / "checkpoints" / "last.ckpt")["longspan_config"]
    other = {**config, "optimizer": {**config["optimizer"], "lr": 0.5}, "ckpt_path": "auto"}
    with pytest.raises(CheckpointError, match=r"optimizer\.lr: .* -> 0\.5"):
        resume_from(other)


def test_no_number_stops_the_run_with_its_batch_and_the_checkpoint_before(whole, tmp_path):
    assert in_child(train, tmp_path, at=("poison", 5), log=tmp_path / "log.txt") == 1
    record = Record.load(tmp_path)
    assert record.status == "failed" and "nan" in str(record.error) and "nan_batch.pt" in str(record.error)
    saved = torch.load(tmp_path / "nan_batch.pt", weights_only=True)
    assert saved["step"] == 5 and saved["batch"]["tokens"].shape == (2, 64)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert in_child(train, tmp_path, "ckpt_path=auto") == 0
    assert_ended_as(whole, tmp_path)


SCONTROL = """#!/bin/sh
echo "$0 $*" >> {folder}/calls
case "$0" in *squeue) echo {state};; esac
"""


@pytest.mark.parametrize(
    ("number", "state"), [(signal.SIGTERM, None), (signal.SIGTERM, "PREEMPTED"), (signal.SIGUSR1, "CANCELLED")]
)
def test_a_preempted_run_saves_and_is_requeued_on_slurm(whole, tmp_path, monkeypatch, number, state):
    if state is not None:
        for name in ("scontrol", "squeue"):
            (tmp_path / name).write_text(SCONTROL.format(folder=tmp_path, state=state))
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        slurm = {"JOB_ID": "123", "JOB_NAME": "night", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
        for name, value in slurm.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
    code = in_child(train_in_environment, tmp_path, dict(os.environ), 7, number)
    assert code == 128 + number
    assert Record.load(tmp_path).status == "interrupted"
    assert load_checkpoint(tmp_path / "checkpoints" / "interrupted.ckpt")["global_step"] == 8
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert ("scontrol requeue 123" in calls) == (state == "PREEMPTED")
    assert in_child(train, tmp_path, "ckpt_path=auto") == 0
    assert steps_taken(tmp_path) == list(range(1, STEPS + 1))
    assert_ended_as(whole, tmp_path)


def test_a_report_killed_half_way_leaves_the_one_before_and_every_record(whole, tmp_path):
    records, folder = tmp_path / "runs", tmp_path / "report"
    Record.load(whole).save(records / "a" / "record.json")
    assert in_child(report, records, folder) == 0
    before = (folder / "report.html").read_text()
    kept = (records / "a" / "record.json").read_bytes()
    Record.load(whole).model_copy(update={"variant": "other"}).save(records / "b" / "record.json")
    assert in_child(report, records, folder, "report.html") == KILLED
    assert (folder / "report.html").read_text() == before
    assert (records / "a" / "record.json").read_bytes() == kept
    assert in_child(report, records, folder) == 0
    assert "other" in (folder / "report.html").read_text()
