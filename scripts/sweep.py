"""Runs every combination of comma-separated choices, each in a process of its own; then a report from the records.

python scripts/sweep.py attention=full,local,bigbird seed=0,1 at_once=2
python scripts/sweep.py attention=full,bigbird trainer=ddp trainer.devices=2 gpus=0,1,2,3 devices_a_job=2
python scripts/report.py SWEEP_FOLDER -o report
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from longspan.training.checks import check_config
from longspan.training.command_line import composed, jobs
from longspan.training.errors import ConfigError, readable_errors
from longspan.training.overrides import split_words
from longspan.training.sweep import Job, run_jobs, slots

ROOT = Path(__file__).parents[1]
KEYS = {
    "output": "folder of the sweep; multirun/DATE/TIME by default",
    "at_once": "runs at a time where no GPUs are given, 1 by default",
    "gpus": "indices of the GPUs to share out, e.g. 0,1,2,3",
    "devices_a_job": "GPUs a run takes, 1 by default",
}


def main(arguments: list[str]) -> int:
    """Checks every job's config, then runs them; the exit code is 1 where any failed."""
    with readable_errors():
        own, words = split_words(arguments, KEYS)
        sweep = Path(own.get("output") or datetime.now().strftime("multirun/%Y-%m-%d/%H-%M-%S-%f"))
        planned = []
        for number, overrides in enumerate(jobs(words, multirun=True)):
            check_config(composed(ROOT / "conf", overrides))
            attention = next((word.split("=")[1] for word in overrides if word.startswith("attention=")), "run")
            planned.append(Job(tuple(overrides), sweep / f"{number}-{attention}"))
        gpus = [gpu for gpu in own.get("gpus", "").split(",") if gpu]
        places = slots(gpus, _whole(own, "devices_a_job"), _whole(own, "at_once"))
        codes = run_jobs(planned, places, train=ROOT / "train.py", group=sweep.as_posix())
    print(f"{codes.count(0)} of {len(codes)} runs complete. Next: python scripts/report.py {sweep} -o {sweep}/report")
    return 0 if not any(codes) else 1


def _whole(own: dict[str, str], key: str) -> int:
    value = own.get(key, "1")
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"{key}={value} must be a whole number, 1 or more")
    return int(value)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        sys.exit(main(sys.argv[1:]))
