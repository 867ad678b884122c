"""Jobs of a sweep: folders, devices, and processes of their own."""

from __future__ import annotations

import json
import sys

import pytest

from longspan.training.errors import ConfigError
from longspan.training.sweep import Job, run_jobs, slots

# stands in for train.py: writes what it was started with, fails where it is told to
STAND_IN = """
import json, os, pathlib, sys
words = dict(word.split("=", 1) for word in sys.argv[1:])
place = os.environ.get("CUDA_VISIBLE_DEVICES")
(pathlib.Path(words["hydra.run.dir"]) / "seen.json").write_text(json.dumps([words, place, os.getpid()]))
print("said")
sys.exit(3 if words.get("seed") == "13" else 0)
"""


@pytest.mark.parametrize(
    ("devices", "a_job", "at_once", "expected"),
    [
        ((), 1, 2, [(), ()]),
        (("0", "1", "2"), 1, 1, [("0",), ("1",), ("2",)]),
        (("0", "1", "2", "3"), 2, 1, [("0", "1"), ("2", "3")]),
        (("0", "1", "2"), 2, 1, [("0", "1")]),
    ],
)
def test_devices_are_shared_out_without_overlap(devices, a_job, at_once, expected):
    assert slots(devices, a_job, at_once) == expected


def test_more_devices_a_job_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="devices_a_job=3"):
        slots(["0", "1"], 3, 1)


def test_each_job_is_a_process_and_a_failing_one_takes_none_with_it(tmp_path):
    train = tmp_path / "train.py"
    train.write_text(STAND_IN)
    jobs = [Job((f"seed={seed}",), tmp_path / f"job{seed}") for seed in (1, 13, 2)]
    jobs.append(Job(("seed=4", "group=mine"), tmp_path / "job4"))
    assert run_jobs(jobs, [("5", "6"), ("7",)], train=train, group="all") == [0, 3, 0, 0]
    seen = [json.loads((job.folder / "seen.json").read_text()) for job in jobs]
    assert len({process for _, _, process in seen}) == 4
    assert {place for _, place, _ in seen} <= {"5,6", "7"}
    assert [words["group"] for words, _, _ in seen] == ["all", "all", "all", "mine"]
    assert all((job.folder / "log.txt").read_text() == "said\n" for job in jobs)


def test_the_script_checks_every_job_before_the_first(tmp_path):
    import subprocess
    from pathlib import Path

    script = Path(__file__).parents[1] / "scripts" / "sweep.py"
    words = ["attention=full,bigbrid", f"output={tmp_path / 'sweep'}"]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "attention=bigbird?" in done.stderr
    assert not (tmp_path / "sweep").exists()
