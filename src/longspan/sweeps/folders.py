"""Reads the state of a job from its folder: finished, to be resumed, or still running in another process.

The lock is held by the run's own process and goes with it, however it ends; the driver that started it may be long gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from longspan.config.diff import differences
from longspan.config.errors import ConfigError, InUseError, RecordError
from longspan.records import Record
from longspan.records.atomic import write_text
from longspan.records.lock import described, exclusive, holder_of
from longspan.sweeps.plan import Job

LOCK = "job.lock"


def status_of(job: Job) -> str | None:
    """The status in the job's record; None where it has not begun, or its record cannot be read.

    Raises:
        ConfigError: the record is of a run with other settings.
    """
    path = job.folder / "record.json"
    if not path.exists():
        return None
    try:
        record = Record.load(path)
    except RecordError:
        return None
    changed = differences(record.config, job.config) if record.config else []
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"{job.folder} holds a run with other settings ({'; '.join(changed[:3])}{more}): give this sweep another folder "
            "with sweep.output=FOLDER, or remove that run"
        )
    return record.status


def describe_job(job: Job, train: Path) -> None:
    """Leaves `job.json`: what is run here, for people and for whoever takes it up."""
    content = {"overrides": list(job.overrides), "command": job.command(train), "group": job.group, "config": job.config}
    write_text(job.folder / "job.json", json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds the folder's lock; gives the file descriptor, which a child that inherits it holds too.

    Raises:
        InUseError: someone else holds it.
    """
    with exclusive(folder / LOCK) as handle:
        yield handle


def begun_at(folder: Path) -> float | None:
    """When the folder's last process began, in seconds since the epoch; looks without touching the lock."""
    try:
        held = (folder / LOCK).stat()
    except OSError:
        return None
    return held.st_mtime if held.st_size else None


def is_running(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    if not (folder / LOCK).exists():
        return False
    try:
        with locked(folder):
            return False
    except InUseError:
        return True


def ask_to_stop(folder: Path, number: int = signal.SIGTERM) -> bool:
    """Signals the process that runs in the folder, if one does, to save a checkpoint and end; whether it was reached."""
    if not is_running(folder):
        return False
    held = holder_of(folder / LOCK)
    process = held.get("process")
    if held.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process, number)
        else:
            os.kill(process, number)
    return True


def wait_until_free(folders: list[Path], patience: float, say: Callable[[str], None] = print) -> None:
    """Asks whoever runs in these folders to stop, and waits until they have; kills what has not after `patience` seconds.

    Raises:
        InUseError: a process of another host, which cannot be asked.
    """
    busy = [folder for folder in folders if is_running(folder)]
    if not busy:
        return
    say(f"{len(busy)} run(s) of an earlier start still go on: asking them to save and stop, to take them up again")
    for folder in busy:
        if not ask_to_stop(folder) and is_running(folder):
            holder = holder_of(folder / LOCK)
            said = f"{folder} is in use by {described(holder)}, which cannot be stopped from here: end it first"
            raise InUseError(said, holder)
    end = time.monotonic() + patience
    while busy and time.monotonic() < end:
        time.sleep(0.1)
        busy = [folder for folder in busy if is_running(folder)]
    for folder in busy:
        say(f"{folder} did not stop within {patience:.0f} s: killed")
        ask_to_stop(folder, signal.SIGKILL)
    while any(is_running(folder) for folder in busy):
        time.sleep(0.1)
