"""Progress in a log and on a terminal, and the checkpoint that is best by the task's own metric."""

import re
from pathlib import Path

import pytest
import torch
from tiny_run import TinyData, TinyTask, tiny_trainer

from longspan.training.callbacks.best_checkpoint import BestCheckpoint
from longspan.training.callbacks.progress import LiveProgress, PlainProgress, progress_bar


def test_a_log_gets_lines_with_step_loss_speed_and_validation(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path, [PlainProgress(interval=0.0)], enable_progress_bar=True)
    trainer.fit(TinyTask(), TinyData())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("[", "validation"))]
    assert re.match(r"\[#\.{19}\] step +1/20  loss [\d.e+]+  \d+ ms/step  0:0", lines[0])
    assert lines[-2].startswith("[####################] step 20/20")
    validations = [line for line in lines if line.startswith("validation")]
    assert [line.split(":")[0] for line in validations] == ["validation after step 10", "validation after step 20"]
    assert "accuracy 0.6" in validations[0]


def test_a_log_is_not_flooded(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path, [PlainProgress(interval=3600.0)], enable_progress_bar=True)
    trainer.fit(TinyTask(), TinyData())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [re.search(r"step +(\d+)/", line)[1] for line in lines] == ["1", "20"], "the first step and the last"


def test_the_live_bar_runs_through_fit_and_test(tmp_path):
    bar = LiveProgress()
    trainer = tiny_trainer(tmp_path, [bar], enable_progress_bar=True)
    task = TinyTask()
    trainer.fit(task, TinyData())
    trainer.test(task, TinyData(), verbose=False)
    assert bar._progress is None, "nothing is left drawing"


def test_the_live_bar_stops_with_the_run(tmp_path):
    def fail():
        raise ZeroDivisionError

    bar = LiveProgress()
    with pytest.raises(ZeroDivisionError):
        tiny_trainer(tmp_path, [bar], enable_progress_bar=True).fit(TinyTask(at_batch={3: fail}), TinyData())
    assert bar._progress is None


def test_style_follows_the_terminal_and_a_wrong_one_is_named():
    assert isinstance(progress_bar("plain"), PlainProgress)
    assert isinstance(progress_bar("rich"), LiveProgress)
    with pytest.raises(ValueError, match=r"'fancy'.*auto, rich, plain"):
        progress_bar("fancy")


class Falls(TinyTask):
    """Best in the middle: 0.6, 0.9, 0.7."""

    def validation_step(self, batch, index):
        self.log("val/loss", 1.0)
        self.log("val/accuracy", {5: 0.6, 10: 0.9, 15: 0.7}[self.global_step])
        self.log("val/loss_like", {5: 3.0, 10: 2.0, 15: 1.0}[self.global_step])


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 10), ("loss_like", 15)])
def test_the_best_checkpoint_is_the_task_s(tmp_path, metric, best):
    task = Falls()
    task.primary_metric = metric
    keep = BestCheckpoint(
        dirpath=tmp_path,
        filename="best-step{step}",
        auto_insert_metric_name=False,
        save_last=True,
        enable_version_counter=False,
    )
    trainer = tiny_trainer(
        tmp_path, [keep], enable_checkpointing=True, max_steps=15, val_check_interval=5, num_sanity_val_steps=0
    )
    trainer.fit(task, TinyData())
    assert keep.monitor == f"val/{metric}"
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [f"best-step{best}.ckpt", "last.ckpt"]
    assert keep.best_model_path.endswith(f"best-step{best}.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 15


class Ties(TinyTask):
    """Few held-out sequences: the accuracy is the same at each validation, the loss is not."""

    primary_metric = "accuracy"

    def validation_step(self, batch, index):
        self.log("val/loss", {5: 3.0, 10: 1.0, 15: 2.0}[self.global_step])
        self.log("val/accuracy", 0.9)


def test_of_equal_figures_the_one_with_less_loss_is_kept_also_after_a_resume(tmp_path):
    def keep_and_fit(folder, steps, **resume):
        keep = BestCheckpoint(dirpath=folder, filename="best-step{step}", auto_insert_metric_name=False, save_last=True)
        settings = {"enable_checkpointing": True, "val_check_interval": 5, "num_sanity_val_steps": 0}
        tiny_trainer(folder, [keep], max_steps=steps, **settings).fit(Ties(), TinyData(), **resume)
        return Path(keep.best_model_path).name

    assert keep_and_fit(tmp_path / "whole", 15) == "best-step10.ckpt"
    assert keep_and_fit(tmp_path / "first", 10) == "best-step10.ckpt"
    assert keep_and_fit(tmp_path / "second", 15, ckpt_path=tmp_path / "first" / "last.ckpt") == "best-step10.ckpt"


def test_the_end_of_training_is_the_last_checkpoint_without_a_validation_there(tmp_path):
    keep = BestCheckpoint(dirpath=tmp_path, save_last=True, enable_version_counter=False)
    trainer = tiny_trainer(tmp_path, [keep], enable_checkpointing=True, max_steps=14)
    trainer.fit(TinyTask(), TinyData())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 14


def test_a_monitor_that_is_named_stands(tmp_path):
    keep = BestCheckpoint(monitor="val/loss", dirpath=tmp_path)
    trainer = tiny_trainer(tmp_path, [keep], enable_checkpointing=True)
    trainer.fit(TinyTask(), TinyData())
    assert (keep.monitor, keep.mode) == ("val/loss", "min")
