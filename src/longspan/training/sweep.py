"""Several runs, each a fresh process with a folder and devices of its own.

Hydra's --multirun runs jobs in one process, where a job over several devices would start the whole sweep again in each
rank; here a job knows nothing of the others, and one that fails or runs out of memory takes none with it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from longspan.training.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One run: its overrides and its folder. Its output goes to `log.txt` there."""

    overrides: tuple[str, ...]
    folder: Path

    def command(self, train: Path, group: str) -> list[str]:
        own = [f"hydra.run.dir={self.folder}", *([] if self._sets("group") else [f"group={group}"])]
        return [sys.executable, str(train), *self.overrides, *own]

    def _sets(self, key: str) -> bool:
        return any(word.startswith(f"{key}=") for word in self.overrides)


def slots(devices: Sequence[str], devices_a_job: int, at_once: int) -> list[tuple[str, ...]]:
    """The devices of each job that can run at the same time; empty tuples where no device is assigned.

    Raises:
        ConfigError: fewer devices than a job takes.
    """
    if not devices:
        return [()] * max(1, at_once)
    if devices_a_job < 1 or devices_a_job > len(devices):
        raise ConfigError(
            f"devices_a_job={devices_a_job} with gpus={','.join(devices)}: give 1 to {len(devices)}, or more GPUs"
        )
    return [
        tuple(devices[start : start + devices_a_job]) for start in range(0, len(devices) - devices_a_job + 1, devices_a_job)
    ]


def run_jobs(jobs: Sequence[Job], places: Sequence[tuple[str, ...]], *, train: Path, group: str) -> list[int]:
    """Runs all jobs, as many at a time as there are places; the exit code of each, in order.

    On Ctrl-C the jobs that run are interrupted too, which leaves their checkpoints and records, and no other starts.
    """
    free: SimpleQueue[tuple[str, ...]] = SimpleQueue()
    for place in places:
        free.put(place)
    stopped = threading.Event()

    def run(numbered: tuple[int, Job]) -> int:
        number, job = numbered
        if stopped.is_set():
            return -1
        place = free.get()
        try:
            return _run_one(number, len(jobs), job, place, train, group)
        finally:
            free.put(place)

    with ThreadPoolExecutor(max_workers=len(places)) as pool:
        try:
            return list(pool.map(run, enumerate(jobs)))
        except KeyboardInterrupt:
            stopped.set()  # the terminal has sent Ctrl-C to the running jobs already
            raise


def _run_one(number: int, total: int, job: Job, place: tuple[str, ...], train: Path, group: str) -> int:
    job.folder.mkdir(parents=True, exist_ok=True)
    command = job.command(train, group)
    environment = dict(os.environ)
    if place:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(place)
    where = f" on GPU {','.join(place)}" if place else ""
    print(f"[{number + 1}/{total}] {shlex.join(job.overrides)}{where} -> {job.folder}", flush=True)
    with (job.folder / "log.txt").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    print(f"[{number + 1}/{total}] {'done' if code == 0 else f'exit code {code}: see {job.folder}/log.txt'}", flush=True)
    return code
