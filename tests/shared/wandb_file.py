"""Reads W&B's own offline file: a LevelDB log of protobuf messages, as `wandb sync` would send them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32_768, 7  # a chunk: 4 bytes of checksum, 2 of length, 1 of kind (1 whole, 2 first, 3 middle, 4 last)
OPENING = b":W&B"
HEAD_OF_FILE = 7


@dataclass
class OfflineRun:
    """What one offline file holds, as plain values: history rows, axes, config, summary, and the run's own fields."""

    id: str = ""
    group: str = ""
    project: str = ""
    name: str = ""
    resumes: bool = False  # the server goes on in the run of this id
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)  # metric or glob -> its step metric
    exit_code: int | None = None
    files: list[str] = field(default_factory=list)


def messages(path: Path) -> list[Record]:
    """The records of a file, in their order."""
    data = path.read_bytes()
    assert OPENING.startswith(data[: len(OPENING)]), f"{path} is no file of W&B"  # empty while it is begun
    found, part, place = [], b"", HEAD_OF_FILE
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left  # the rest of a block that no header fits in
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):
            found.append(Record.FromString(part))
            part = b""
    return found


def read(path: Path) -> OfflineRun:
    """One file."""
    run = OfflineRun()
    for record in messages(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.group, run.project = record.run.run_id, record.run.run_group, record.run.project
            run.name, run.resumes = record.run.display_name, record.run.resume
            _update(run.config, record.run.config.update)
        elif kind == "config":
            _update(run.config, record.config.update)
        elif kind == "summary":
            _update(run.summary, record.summary.update)
        elif kind == "history":
            run.history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            run.axes[name] = record.metric.step_metric
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
        elif kind == "files":
            run.files += [file.path for file in record.files.files]
    return run


def read_all(folder: Path) -> list[OfflineRun]:
    """The finished runs in a folder that W&B wrote to, oldest first; its service may write a file's end a moment later."""
    end = time.monotonic() + 30
    while True:
        runs = [read(path) for path in sorted(folder.rglob("*.wandb"), key=lambda path: path.stat().st_mtime_ns)]
        if all(run.exit_code is not None for run in runs) or time.monotonic() > end:
            return runs
        time.sleep(0.1)


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _update(into: dict[str, Any], items: Any) -> None:
    for item in items:
        into[_key(item)] = json.loads(item.value_json)
