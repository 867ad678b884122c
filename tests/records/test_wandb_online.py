"""W&B online: runs, a sweep and a report as W&B's own SDK sends them to a server, which stands in on this machine."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import warm_process
from killed_run import in_child, train_in_environment
from left_records import leave
from wandb_server import KEY, wandb_server

from longspan.sweeps import process
from longspan.sweeps.command import main

pytest.importorskip("wandb")
ROOT = Path(__file__).parents[2]
SMALL = (
    "model=tiny",
    "data.max_length=64",
    "data.max_train_windows=8",
    "data.max_validation_windows=2",
    "data.max_test_windows=2",
    "trainer.val_check_interval=2",
    "trainer.max_steps=4",
    "logger=wandb",
    "logger.wandb.mode=online",
)


@pytest.fixture
def server(tmp_path):
    with wandb_server() as server:
        yield server
        assert set(server.unknown) <= {"OrganizationCoreWeaveOrganizationID"}, "W&B asks for more than the stand-in knows"


def environment(server):
    """That of a process where nobody but the server's user is known to W&B."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    found = {**kept, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels"), kept.get("PYTHONPATH", "")])
    return found


def as_user(server, command, expected=0):
    """Runs a script with its words."""
    done = warm_process.run(*command, cwd=ROOT, env=environment(server))
    assert done.returncode == expected, done.stdout + done.stderr
    return done


def forked(command, *, env, **_):
    """A run of a sweep, which has torch loaded when it starts; `test_sweep_of_ranks.py` starts interpreters."""
    return warm_process.Script(*command[1:], cwd=ROOT, env=env, merged=True)


def test_a_sweep_is_a_group_of_runs_with_accuracy_over_cost(server, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "subprocess", SimpleNamespace(Popen=forked, DEVNULL=None))
    monkeypatch.setattr(os, "environ", environment(server))
    words = [*SMALL, "sweep.name=night", f"sweep.output={tmp_path / 'night'}", "attention=full,local"]
    assert main(words, train=ROOT / "train.py") == 0
    runs = {run.config["attention_name"]: run for run in server.runs.values()}
    assert runs.keys() == {"full", "local"} and len({run.id for run in runs.values()}) == 2
    for name, run in runs.items():
        (folder,) = [path.parent for path in (tmp_path / "night").rglob("record.json") if name in path.parent.name]
        record = json.loads((folder / "record.json").read_text())
        assert (run.project, run.group, run.exit_codes, run.taken_up) == ("longspan", "night", [0], 0)
        assert run.id == (folder / "wandb_run_id").read_text().strip()
        assert run.axes == {"accuracy/*": "cost/total_flops", "*": "trainer/global_step"}
        assert run.config["trainer"]["max_steps"] == 4 and "logger" not in run.config
        drawn = [(row["trainer/global_step"], row["cost/total_flops"]) for row in run.rows if "accuracy/bits_per_byte" in row]
        assert [step for step, _ in drawn] == [2, 4] and 0 < drawn[0][1] < drawn[1][1]
        told = run.summary
        assert (told["status"], told["variant"]) == ("complete", name)
        assert told["final/perplexity"] == pytest.approx(record["accuracy"]["perplexity"]["value"])
        assert told["cost/total_flops"] == record["cost"]["total_flops"]["value"]
        (table,) = [
            json.loads(data) for path, data in server.files.items() if path.startswith(f"{run.id}/media/table/summary/")
        ]
        assert table["columns"] == ["variant", "seed", "total_flops", "bits_per_byte"]
        assert table["data"] == [[name, 0, told["cost/total_flops"], record["accuracy"]["bits_per_byte"]["value"]]]


def test_a_run_that_was_stopped_goes_on_in_the_same_run(server, tmp_path):
    words = ("logger=wandb", "logger.wandb.mode=online", "logger.wandb.group=mine", "trainer.max_steps=8")
    folder, environ = tmp_path / "run", environment(server)
    folder.mkdir()
    assert in_child(train_in_environment, folder, environ, 4, signal.SIGTERM, *words) == 143
    (run,) = server.runs.values()
    before = list(run.rows)
    assert run.exit_codes == [1] and run.summary["status"] == "interrupted" and run.taken_up == 0
    assert in_child(train_in_environment, folder, environ, 99, signal.SIGTERM, *words, "ckpt_path=auto") == 0
    (run,) = server.runs.values()  # no second one
    assert run.taken_up == 1 and run.exit_codes == [1, 0] and run.summary["status"] == "complete"
    assert run.rows[: len(before)] == before, "what was sent before stays"
    steps = [row["trainer/global_step"] for row in run.rows if "accuracy/bits_per_byte" in row]
    assert steps == sorted(set(steps)) and steps[0] == 2 and steps[-1] == 8
    assert [row["_step"] for row in run.rows] == sorted({row["_step"] for row in run.rows})


def test_the_report_is_a_run_of_its_own(server, tmp_path):
    for variant, cost in (("full", 100), ("local", 40)):
        leave(tmp_path / "runs", variant, variant, 0, 0.5 + cost / 1000, cost=cost)
    words = [str(tmp_path / "runs"), "-o", str(tmp_path / "out"), "--wandb", "mine", "--title", "A report"]
    as_user(server, ["scripts/report.py", *words])
    (run,) = server.runs.values()
    assert (run.project, run.display_name, run.job_type, run.exit_codes) == ("mine", "A report", "report", [0])
    tables = [json.loads(data) for path, data in server.files.items() if path.endswith(".table.json") and "against" not in path]
    assert tables[0]["columns"][:3] == ["variant", "n", "accuracy"] and tables[0]["columns"][-1] == "total_flops"
    assert [(row[0], row[2], row[-1]) for row in tables[0]["data"]] == [("full", 0.6, 100), ("local", 0.54, 40)]
    assert any(path.endswith(".png") for path in server.files)


def test_a_server_that_refuses_the_key_is_named_before_anything_is_trained(server, tmp_path):
    server._Viewer = lambda given: {"viewer": None}
    words = [*SMALL, "attention=local", f"hydra.run.dir={tmp_path / 'run'}"]
    done = as_user(server, ["train.py", *words], expected=2)
    assert "logger.wandb.mode=online: W&B cannot be logged in to" in done.stderr
    assert "logger.wandb.mode=offline keeps the run here" in done.stderr and "Traceback" not in done.stderr
