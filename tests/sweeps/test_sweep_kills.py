"""Sweeps through kills: finished runs are not run again, half-finished ones go on, none counts twice."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from warm_process import Script

from longspan.config.errors import ConfigError
from longspan.records import Record
from longspan.sweeps.drive import Sweep
from longspan.sweeps.folders import is_running, locked, status_of
from longspan.sweeps.plan import grid_jobs, read_sweep
from longspan.sweeps.process import Outcome, run_job

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
STAND_IN = ROOT / "tests" / "shared" / "stand_in_train.py"


def planned(folder: Path, *words: str):
    settings = read_sweep([f"sweep.output={folder}", "sweep.name=night", "sweep.engine=local", *words], CONF)
    return settings, grid_jobs(settings, CONF)


def sweep(folder: Path, *words: str) -> dict[str, str]:
    settings, jobs = planned(folder, *words)
    return Sweep(settings, STAND_IN).run(jobs)


def starts(folder: Path) -> list[dict]:
    path = folder / "starts"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_each_run_is_a_process_and_one_that_ends_badly_takes_none_with_it(tmp_path, monkeypatch, capsys):
    for name, value in {"SLURM_NTASKS": "4", "RANK": "1", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    statuses = sweep(tmp_path, "seed=1,13,14,15,2", "sweep.gpus=[5,6]", "group=mine")
    assert statuses == {
        "seed1": "complete",
        "seed13": "failed",
        "seed14": "out_of_memory",
        "seed15": "failed",
        "seed2": "complete",
    }
    seen = [start for name in statuses for start in starts(tmp_path / name)]
    assert len(seen) == len({start["pid"] for start in seen}) == 5
    assert {start["place"] for start in seen} == {"5", "6"}
    assert not any(start["foreign"] for start in seen), "a job must not think itself a rank of its driver"
    recorded = Record.load(tmp_path / "seed15")
    assert "no such module" in recorded.error and recorded.config["seed"] == 15
    assert all("said" in (tmp_path / name / "log.txt").read_text() for name in statuses)
    printed = capsys.readouterr().out
    assert "seed14: out of memory" in printed and "log.txt" in printed


def test_what_is_finished_is_not_run_again(tmp_path, capsys):
    assert set(sweep(tmp_path, "seed=1,13").values()) == {"complete", "failed"}
    before = (tmp_path / "seed1" / "record.json").read_bytes()
    assert sweep(tmp_path, "seed=1,13,3") == {"seed1": "complete", "seed13": "failed", "seed3": "complete"}
    assert [len(starts(tmp_path / name)) for name in ("seed1", "seed13", "seed3")] == [1, 1, 1]
    assert (tmp_path / "seed1" / "record.json").read_bytes() == before
    assert "1 complete already" in capsys.readouterr().out
    sweep(tmp_path, "seed=1,13", "sweep.retry=[failed]")
    assert [len(starts(tmp_path / name)) for name in ("seed1", "seed13")] == [1, 2]


def test_a_run_that_ended_after_the_driver_had_looked_is_not_run_again(tmp_path):
    sweep(tmp_path, "seed=1,2")
    _, [job, _] = planned(tmp_path, "seed=1,2")
    assert run_job(job, STAND_IN, None, os.environ) == Outcome("complete", 0)
    assert len(starts(tmp_path / "seed1")) == 1


def test_a_killed_run_is_taken_up_again_but_not_for_ever(tmp_path):
    assert sweep(tmp_path, "seed=16,17", "sweep.attempts=3") == {"seed16": "complete", "seed17": "interrupted"}
    assert [len(starts(tmp_path / name)) for name in ("seed16", "seed17")] == [2, 3]
    assert (tmp_path / "seed16" / "steps").read_text() == "trained\n"
    assert (tmp_path / "seed16" / "finished").read_text() == "once\n"


def test_a_run_that_dies_of_a_signal_is_recorded_with_it(tmp_path):
    """A crash would come again; what was killed goes on with the next start, and says so until then."""
    ended = sweep(tmp_path, "seed=19,20,21", "sweep.attempts=2")
    assert ended == {"seed19": "failed", "seed20": "failed", "seed21": "interrupted"}
    assert [len(starts(tmp_path / name)) for name in ended] == [1, 1, 2]
    for name, word in {"seed19": "SIGSEGV", "seed20": "SIGSEGV", "seed21": "SIGKILL"}.items():
        record = Record.load(tmp_path / name)
        assert record.status == ended[name] and word in record.error and record.config["seed"] == int(name[4:])
    assert "killed by SIGKILL" in Record.load(tmp_path / "seed21").error


def test_a_folder_with_a_run_of_other_settings_is_refused(tmp_path):
    sweep(tmp_path, "seed=1,2")
    with pytest.raises(ConfigError, match=r"optimizer\.lr: .* -> 0\.5") as caught:
        sweep(tmp_path, "seed=1,2", "optimizer.lr=0.5")
    assert "sweep.output=FOLDER" in str(caught.value)
    assert len(starts(tmp_path / "seed1")) == 1


DRIVER = """
import sys
from pathlib import Path
from longspan.sweeps.drive import Sweep
from longspan.sweeps.plan import grid_jobs, read_sweep
from longspan.sweeps.process import Outcome, run_job
conf, train, *words = sys.argv[1:]
settings = read_sweep(words, Path(conf))
print(Sweep(settings, Path(train)).run(grid_jobs(settings, Path(conf))), flush=True)
"""


def driver(folder: Path, *words: str) -> Script:
    (folder / "driver.py").write_text(DRIVER)
    own = [f"sweep.output={folder}", "sweep.name=night", "sweep.engine=local"]
    return Script(folder / "driver.py", CONF, STAND_IN, *own, *words, merged=True)


def test_a_killed_driver_leaves_its_runs_and_the_next_takes_them_up(tmp_path):
    words = ("seed=1,18,2",)
    first = driver(tmp_path, *words)
    waiting = tmp_path / "seed18"
    until(lambda: len(starts(waiting)) == 1 and "interrupted" in str(status_of(planned(tmp_path, *words)[1][1])))
    second = driver(tmp_path, *words)
    assert "this sweep is being run" in second.communicate(timeout=60)[0], "two drivers would run the same jobs"
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert is_running(waiting), "the run goes on without its driver"
    third = driver(tmp_path, *words)
    until(lambda: len(starts(waiting)) == 2)
    (waiting / "go").touch()
    printed = third.communicate(timeout=60)[0]
    assert third.returncode == 0 and "asking them to save and stop" in printed, printed
    assert [len(starts(tmp_path / name)) for name in ("seed1", "seed18", "seed2")] == [1, 2, 1]
    for name in ("seed1", "seed18", "seed2"):
        assert Record.load(tmp_path / name).status == "complete"
        assert (tmp_path / name / "finished").read_text() == "once\n"
    assert not is_running(waiting)


def test_a_driver_that_is_asked_to_stop_stops_its_runs_and_starts_no_other(tmp_path):
    running = driver(tmp_path, "seed=18,1")
    until(lambda: (tmp_path / "seed18" / "record.json").exists())
    running.send_signal(signal.SIGINT)
    printed = running.communicate(timeout=60)[0]
    assert running.returncode == 0 and "'seed18': 'interrupted', 'seed1': 'not run'" in printed, printed
    assert Record.load(tmp_path / "seed18").error == "SIGTERM received" and not starts(tmp_path / "seed1")
    (tmp_path / "seed18" / "go").touch()
    assert sweep(tmp_path, "seed=18,1") == {"seed18": "complete", "seed1": "complete"}


def test_a_lock_goes_with_its_holder(tmp_path):
    with locked(tmp_path):
        assert is_running(tmp_path)
    assert not is_running(tmp_path)


def test_a_report_counts_each_run_of_a_killed_sweep_once(tmp_path):
    from longspan.report.collect import collect

    sweep(tmp_path, "seed=16,1,13")
    found = collect([tmp_path])
    assert sorted(run.record.seed for run in found.complete) == [1, 16] and len(found.unfinished) == 1
