"""W&B: accuracy has cost as its axis, nothing is contacted, and a run goes on under its old id."""

import json
import time

import pytest
from tiny_run import TinyData, TinyTask, tiny_trainer

from longspan.cost.measured import MeasuredCost
from longspan.records import RecordWriter, wandb_logger
from longspan.records.wandb_axes import WandbModeError


def test_an_unknown_mode_is_named(tmp_path):
    with pytest.raises(WandbModeError, match=r"'ofline'.*offline, online, disabled"):
        wandb_logger(tmp_path, mode="ofline")


def test_the_run_s_id_is_kept_in_its_folder(tmp_path):
    first = wandb_logger(tmp_path, mode="disabled").version
    assert (tmp_path / "wandb_run_id").read_text().strip() == first
    assert wandb_logger(tmp_path, mode="disabled").version == first
    assert wandb_logger(tmp_path, mode="disabled", id="mine").version == "mine"


def test_an_offline_run_leaves_axes_summary_and_scatter(tmp_path, monkeypatch):
    import wandb

    seen = {}
    original = wandb.sdk.wandb_run.Run.define_metric

    def watched(self, name, *arguments, **settings):
        seen[name] = settings.get("step_metric")
        return original(self, name, *arguments, **settings)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "define_metric", watched)
    begun = time.monotonic()
    with RecordWriter(tmp_path / "record.json", config={"attention_name": "local"}) as record:
        logger = wandb_logger(tmp_path, project="tests")
        trainer = tiny_trainer(tmp_path, [MeasuredCost(warmup_steps=2), record], logger=logger)
        trainer.fit(TinyTask(), TinyData())
    assert time.monotonic() - begun < 60, "offline must not wait for a network"
    assert seen["accuracy/*"] == "cost/total_flops"
    assert wandb.run is None, "the run must be finished on the way out"
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    tables = list((tmp_path / "wandb").rglob("accuracy_against_cost*.json"))
    assert len(tables) == 1
    table = json.loads(tables[0].read_text())
    assert table["columns"] == ["variant", "seed", "total_flops", "accuracy"]
    assert table["data"][0][0] == "local"
    assert table["data"][0][2] == record.record.cost["total_flops"].value


def test_a_failed_run_finishes_its_wandb_run_too(tmp_path):
    import wandb

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), RecordWriter(tmp_path / "record.json") as record:
        trainer = tiny_trainer(tmp_path, [record], logger=wandb_logger(tmp_path, mode="disabled"))
        trainer.fit(TinyTask(at_batch={3: fail}), TinyData())
    assert wandb.run is None
