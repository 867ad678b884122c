"""A folder that one process writes to at a time: a file lock that goes with its holder, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longspan.config.errors import InUseError
from longspan.records.environment import command_line


@contextlib.contextmanager
def exclusive(path: Path, *, take_over: bool = False) -> Iterator[int]:
    """Holds the lock of a file; gives its descriptor, which a child that inherits it holds too.

    Args:
        take_over: also where only what its process has forked still holds it, which outlives a killed one by seconds.

    Raises:
        InUseError: someone else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _taken(path, take_over)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def held_folder(folder: Path, name: str = "run.lock") -> Iterator[None]:
    """The folder as this process's own; the lock says who holds it, and is removed in the end.

    A lock whose process is gone is taken over.

    Raises:
        InUseError: another process is at work there.
    """
    with exclusive(folder / name, take_over=True) as handle:
        note(handle, os.getpid())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(folder / name)


def note(handle: int, process: int) -> None:
    """Writes down who holds the lock."""
    content = {
        "process": process,
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "born": _born(process),
        "command": command_line(),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(content).encode(), 0)


def holder_of(path: Path) -> dict[str, Any]:
    """What the holder of the lock wrote down; empty where it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def described(holder: dict[str, Any]) -> str:
    """``process 12 on host, started 2026-01-31T12:00:00+00:00``."""
    if "process" not in holder:
        return "another process"
    started = f", started {holder['started']}" if holder.get("started") else ""
    return f"process {holder['process']} on {holder.get('host', 'an unknown host')}{started}"


def _taken(path: Path, take_over: bool) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = holder_of(path)
            if not (take_over and _gone(holder) and _same_file(handle, path)):
                os.close(handle)
                if not path.exists():
                    continue  # its holder ended just now
                raise InUseError(f"{path.parent} is in use by {described(holder)}", holder) from None
            os.unlink(path)  # held by what its process has forked, which writes nothing
        else:
            if _same_file(handle, path):
                return handle
        os.close(handle)  # another took it and removed the file in between


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the process is known to have ended: of this host, and no such process, or another under its number."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int) or not Path("/proc/self").exists():
        return False
    born = _born(process)
    return born is None or (holder.get("born") is not None and born != holder["born"])


def _born(process: int) -> str | None:
    """When a process began, in ticks since the host's start; None where there is none, or it is dead and unburied."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in ("Z", "X") else rest[18]
