"""The writer: whatever ends a run, its record says so, and never claims more."""

import errno
import logging
import os
import signal
import textwrap
import time

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_run import TinyData, TinyTask, tiny_trainer
from warm_process import run as run_script

from longspan.cost.measured import MeasuredCost
from longspan.records import Record, RecordWriter
from longspan.records.ending import describe, status_of


def run(folder, *, task=None, test=True, callbacks=(), **settings):
    with RecordWriter(folder / "record.json", config={"seed": 3, "attention_name": "bigbird"}) as record:
        trainer = tiny_trainer(folder, [MeasuredCost(warmup_steps=2), record, *callbacks], **settings)
        task = task or TinyTask()
        trainer.fit(task, TinyData(), ckpt_path=settings.pop("ckpt_path", None))
        if test:
            trainer.test(task, TinyData(), verbose=False)
    return record


def test_a_complete_run(tmp_path):
    writer = run(tmp_path)
    record = Record.load(tmp_path)
    assert record == writer.record
    assert (record.status, record.error, record.seed, record.variant) == ("complete", None, 3, "bigbird")
    figure = record.accuracy["accuracy"]
    assert (figure.value, figure.baseline, figure.split, figure.higher_is_better) == (0.75, 0.6, "test", True)
    assert figure.beats_baseline is True
    assert record.primary_metric == "accuracy"
    assert record.data == {"sequences": 40}
    assert {"live_pairs", "density", "total_flops", "step_time", "peak_memory"} <= set(record.cost)
    assert [step for step, _ in record.curves["val/accuracy"]] == [10, 20]
    assert record.curves["val/accuracy"][-1][1] == pytest.approx(0.7)
    assert record.curves["val/loss_like"] == [(10, None), (20, None)]  # NaN is no number, and no crash
    assert record.curves["cost/total_flops"][-1][1] == record.cost["total_flops"].value
    assert record.versions["torch"] == torch.__version__.split("+")[0] or record.versions["torch"] == torch.__version__
    assert record.hardware["cores"] >= 1
    assert record.seconds > 0


def test_without_a_test_the_validation_figures_stand(tmp_path):
    run(tmp_path, test=False)
    figure = Record.load(tmp_path).accuracy["accuracy"]
    assert figure.split == "val"
    assert figure.value == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (ValueError("no such key"), "failed"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "out_of_memory"),
        (torch.OutOfMemoryError("no more"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "failed"),
        (RuntimeError("shapes do not match"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(1), "interrupted"),
    ],
)
def test_status_of_what_is_raised_before_training(tmp_path, raised, status):
    leaves = SystemExit if isinstance(raised, KeyboardInterrupt) else type(raised)  # Ctrl-C ends a process with 130
    with pytest.raises(leaves) as left, RecordWriter(tmp_path / "record.json", config={"seed": 1}):
        raise raised
    assert not isinstance(raised, KeyboardInterrupt) or left.value.code == 130
    record = Record.load(tmp_path)
    assert record.status == status
    assert type(raised).__name__ in record.error
    assert str(raised) in record.error
    assert "Traceback" in record.extra["traceback"]


def test_an_error_wrapped_in_another_counts():
    try:
        try:
            raise torch.OutOfMemoryError("no more")
        except RuntimeError as error:
            raise ValueError("could not build the model") from error
    except ValueError as wrapped:
        assert status_of(wrapped) == "out_of_memory"
        assert describe(wrapped).startswith("ValueError: could not build the model")


def fail():
    raise ZeroDivisionError("in the step")


def exhaust():
    raise RuntimeError("CUDA out of memory. Tried to allocate 64.00 GiB")


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("action", "status", "words"),
    [(fail, "failed", "in the step"), (exhaust, "out_of_memory", "64.00 GiB"), (interrupt, "interrupted", "KeyboardInterrupt")],
)
def test_a_run_that_ends_in_the_middle_keeps_what_it_had(tmp_path, action, status, words):
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(BaseException):  # noqa: B017  Lightning turns a KeyboardInterrupt into SystemExit
            run(tmp_path, task=TinyTask(at_batch={13: action}))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    record = Record.load(tmp_path)
    assert record.status == status
    assert words in record.error
    assert record.accuracy["accuracy"].value == pytest.approx(0.6)  # of the validation at step 10
    assert record.cost["total_flops"].value == 13 * record.cost["flops_per_step"].value


def test_sigterm_ends_after_the_step_and_exits_nonzero(tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, task=TinyTask(at_batch={13: lambda: os.kill(os.getpid(), signal.SIGTERM)}))
    assert stop.value.code == 143
    record = Record.load(tmp_path)
    assert record.status == "interrupted"
    assert "SIGTERM" in record.error
    assert record.cost["total_flops"].value == 14 * record.cost["flops_per_step"].value, "the step in hand is finished"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handler must not outlive the run"


def test_sigterm_outside_training_ends_at_once(tmp_path):
    with pytest.raises(SystemExit) as stop, RecordWriter(tmp_path / "record.json"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        pytest.fail("not stopped")
    assert stop.value.code == 143
    assert Record.load(tmp_path).status == "interrupted"


def test_a_killed_run_leaves_an_interrupted_record(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal
            from longspan.records import RecordWriter
            with RecordWriter("record.json", config={"seed": 1}):
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    assert run_script(script, cwd=tmp_path).returncode == -signal.SIGKILL
    record = Record.load(tmp_path)
    assert record.status == "interrupted"
    assert "still going, or was killed" in record.error
    assert record.config == {"seed": 1}


def test_a_full_disk_costs_a_warning_not_the_run(tmp_path, monkeypatch, caplog):
    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Record, "save", full)
    # A run configured by Hydra in the same process switches off loggers that were there before it.
    monkeypatch.setattr(logging.getLogger("longspan.records.writer"), "disabled", False)
    with caplog.at_level(logging.WARNING):
        writer = run(tmp_path)
    assert writer.record.status == "complete"
    assert "No space left" in caplog.text


def test_a_complete_record_is_kept_when_its_folder_is_used_again(tmp_path):
    run(tmp_path, test=False)
    first = Record.load(tmp_path)
    with pytest.raises(ValueError), RecordWriter(tmp_path / "record.json"):
        raise ValueError
    assert Record.load(tmp_path).status == "failed"
    assert Record.load(tmp_path / "record.previous.json") == first


def test_a_resumed_run_continues_curves_time_and_flops(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", monitor="val/loss", save_top_k=-1)
    whole = run(tmp_path / "whole", enable_checkpointing=True, callbacks=[keep], test=False).record
    saved = torch.load(tmp_path / "step=10.ckpt", weights_only=True)  # plain containers alone
    assert any("curves" in state for state in saved["callbacks"].values())

    with RecordWriter(tmp_path / "resumed" / "record.json") as record:
        trainer = tiny_trainer(tmp_path, [MeasuredCost(warmup_steps=2), record])
        trainer.fit(TinyTask(), TinyData(), ckpt_path=tmp_path / "step=10.ckpt")
    resumed = record.record
    assert resumed.cost["total_flops"] == whole.cost["total_flops"]
    assert resumed.cost["tokens"] == whole.cost["tokens"]
    assert [step for step, _ in resumed.curves["val/accuracy"]] == [10, 20]
    assert resumed.seconds > 0


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with RecordWriter(tmp_path / "record.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_job_of_a_sweep_records_its_own_command(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            """
            import hydra
            from longspan.records.environment import command_line

            @hydra.main(version_base="1.3", config_path=None)
            def main(config):
                print("COMMAND", command_line())

            main()
            """
        )
    )
    for arguments, expected in [
        (["-m", "+seed=1,2"], ["python job.py +seed=1", "python job.py +seed=2"]),
        (["+seed=1", "+name=a b"], ["python job.py +seed=1 '+name=a b'"]),
    ]:
        done = run_script("job.py", *arguments, cwd=tmp_path, check=True)
        said = [line.removeprefix("COMMAND ") for line in done.stdout.splitlines() if line.startswith("COMMAND")]
        assert said == expected
