"""W&B: accuracy has cost as its axis, nothing is contacted, and a run goes on under its old id."""

import json
import time

import pytest
from left_records import leave
from tiny_run import TinyData, TinyTask, tiny_trainer
from wandb_file import read_all

from longspan.config.errors import ConfigError
from longspan.cost.measured import MeasuredCost
from longspan.records import RecordWriter, wandb_logger
from longspan.report import write_report
from longspan.report.to_wandb import log_report


def test_an_unknown_mode_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'ofline'.*offline, online, disabled"):
        wandb_logger(tmp_path, mode="ofline")


def test_nobody_is_logged_in(monkeypatch, tmp_path):
    import wandb

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # what earlier tests of this process were logged in with
    with pytest.raises(ConfigError, match=r"logger.wandb.mode=online: .*WANDB_API_KEY; logger.wandb.mode=offline"):
        wandb_logger(tmp_path, mode="online")
    with pytest.raises(ConfigError, match=r"--wandb mine: .*WANDB_MODE=offline"):
        log_report("mine", "a report", [], tmp_path, "flops")
    wandb.teardown()  # it would keep the settings of this environment


def test_the_run_s_id_is_kept_in_its_folder(tmp_path):
    first = wandb_logger(tmp_path, mode="disabled").version
    assert (tmp_path / "wandb_run_id").read_text().strip() == first
    assert wandb_logger(tmp_path, mode="disabled").version == first
    assert wandb_logger(tmp_path, mode="disabled", id="mine").version == "mine"


def test_an_offline_run_read_back(tmp_path):
    import wandb

    config = {"attention_name": "local", "seed": 3, "data": {"max_length": 64}, "logger": {"wandb": {"entity": "me"}}}
    begun = time.monotonic()
    for stop in (20, 30):  # the second takes up the run of the first
        with RecordWriter(tmp_path / "record.json", config=config) as record:
            logger = wandb_logger(tmp_path, project="tests", group="a sweep", name="mine")
            trainer = tiny_trainer(tmp_path, [MeasuredCost(warmup_steps=2), record], logger=logger, max_steps=stop)
            trainer.fit(TinyTask(), TinyData())
            trainer.test(TinyTask(), TinyData(), verbose=False)
        assert wandb.run is None, "the run must be finished on the way out"
    assert time.monotonic() - begun < 120, "offline must not wait for a network"
    runs = read_all(tmp_path / "wandb")
    assert [(run.id, run.group, run.project, run.name, run.exit_code) for run in runs] == [
        ((tmp_path / "wandb_run_id").read_text().strip(), "a sweep", "tests", "mine", 0)
    ] * 2
    assert runs[1].resumes, "`wandb sync` must append it to the first"
    for run in runs:
        assert run.axes["accuracy/*"] == "cost/total_flops" and run.axes["*"] == "trainer/global_step"
        assert run.config["data"] == {"max_length": 64} and run.config["seed"] == 3 and "logger" not in run.config
    rows = [row for row in runs[0].history if "accuracy/accuracy" in row]
    assert [row["trainer/global_step"] for row in rows] == [10, 20]
    assert all(row["cost/total_flops"] > 0 for row in rows), "one row holds both, or nothing can be drawn over the cost"
    assert any("train/loss" in row for row in runs[0].history)
    told = runs[1].summary
    assert (told["status"], told["variant"], told["final/accuracy"], told["baseline/accuracy"]) == (
        "complete",
        "local",
        0.75,
        0.6,
    )
    assert told["cost/total_flops"] == record.record.cost["total_flops"].value
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "complete"
    tables = sorted((tmp_path / "wandb").rglob("accuracy_against_cost*.json"), key=lambda path: path.stat().st_mtime_ns)
    table = json.loads(tables[-1].read_text())
    assert table["columns"] == ["variant", "seed", "total_flops", "accuracy"]
    assert table["data"] == [["local", 3, told["cost/total_flops"], 0.75]]
    assert any(path.startswith("media/table/summary/accuracy_against_cost") for path in runs[1].files)


def test_the_report_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variant, cost in (("full", 100), ("local", 40)):
        leave(tmp_path / "runs", variant, variant, 0, 0.5 + cost / 1000, cost=cost)
    write_report([tmp_path / "runs"], tmp_path / "out", wandb_project="tests", title="A report")
    (run,) = read_all(tmp_path / "out")
    assert (run.project, run.name, run.exit_code) == ("tests", "A report", 0)
    (file,) = [path for path in (tmp_path / "out").rglob("*.table.json") if "against" not in path.name]
    table = json.loads(file.read_text())
    assert table["columns"][:3] == ["variant", "n", "accuracy"] and table["columns"][-1] == "total_flops"
    assert [(row[0], row[1], row[2], row[-1]) for row in table["data"]] == [("full", 1, 0.6, 100), ("local", 1, 0.54, 40)]
    assert any("report/" in name and "against" in name for name in run.summary)
    assert any(path.endswith(".png") for path in run.files)


def test_a_failed_run_finishes_its_wandb_run_too(tmp_path):
    import wandb

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), RecordWriter(tmp_path / "record.json") as record:
        trainer = tiny_trainer(tmp_path, [record], logger=wandb_logger(tmp_path, mode="disabled"))
        trainer.fit(TinyTask(at_batch={3: fail}), TinyData())
    assert wandb.run is None
