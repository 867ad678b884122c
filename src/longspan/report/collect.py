"""Finds and reads the records of many runs; what cannot be read is kept by name, never dropped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longspan.config.errors import RecordError
from longspan.records.schema import Record

RECORD_NAME = "record.json"


@dataclass(frozen=True)
class Found:
    """One record and the file that it was read from."""

    path: Path
    record: Record


@dataclass
class Collection:
    """All records under some paths, oldest first, the files that could not be read with the reason, and results of
    scripts/benchmark.py."""

    runs: list[Found] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    benchmarks: list[Path] = field(default_factory=list)

    @property
    def complete(self) -> list[Found]:
        return [run for run in self.runs if run.record.status == "complete"]

    @property
    def unfinished(self) -> list[Found]:
        """Failed, out of memory, interrupted or still going."""
        return [run for run in self.runs if run.record.status != "complete"]


def collect(paths: Iterable[str | Path], copies: str | Path | None = None) -> Collection:
    """Read every `paths` entry: a record file, a benchmark's result, or a folder searched for ``record.json`` at any depth.

    Args:
        copies: where a report keeps copies of its records. A folder around it counts them only where it holds no others:
            those are what they were copied from.

    Raises:
        RecordError: a path does not exist, or nothing was found at all.
    """
    found = Collection()
    files: dict[Path, Path] = {}  # by resolved path, so that overlapping arguments count a run once
    asked = [Path(path) for path in paths]
    for path in asked:
        if path.is_dir():
            for file in _records_under(path, copies):
                files.setdefault(file.resolve(), _shown(file))
        elif path.exists() and _is_benchmark(path):
            found.benchmarks.append(_shown(path))
        elif path.exists():
            files.setdefault(path.resolve(), _shown(path))
        else:
            raise RecordError(f"{path} does not exist; give record files, or folders that runs wrote to")
    if not files and not found.benchmarks:
        fix = "give record files, or folders that runs wrote to"
        raise RecordError(f"no {RECORD_NAME} under {', '.join(map(str, asked)) or 'nothing'}; {fix}")
    for path in files.values():
        try:
            found.runs.append(Found(path, Record.load(path)))
        except RecordError as error:
            found.broken.append((path, str(error).removeprefix(f"{path}: ")))
    found.runs.sort(key=lambda run: (run.record.started, str(run.path)))
    return found


def _records_under(path: Path, copies: str | Path | None) -> list[Path]:
    files = sorted(path.rglob(RECORD_NAME))
    if copies is None or Path(copies).resolve() in (path.resolve(), *path.resolve().parents):
        return files
    return [file for file in files if Path(copies).resolve() not in file.resolve().parents] or files


def copied(collection: Collection, folder: Path) -> Collection:
    """The same records from copies under `folder`, each in a folder called like the run's own; what cannot be read is not
    copied, and what is there already stays."""
    names: dict[str, int] = {}
    runs = []
    for run in collection.runs:
        name = run.path.parent.name or "run"
        names[name] = names.get(name, 0) + 1
        target = folder / (name if names[name] == 1 else f"{name}-{names[name]}") / RECORD_NAME
        record = _passed_on(run.record)
        if target.resolve() != run.path.resolve():
            record.save(target)
        runs.append(Found(_shown(target), record))
    return replace(collection, runs=runs)


def _passed_on(record: Record) -> Record:
    """The record with paths into its own folder from that folder's name on: a copy need not tell of the run's machine."""
    folder = record.config.get("output_dir")
    if not isinstance(folder, str) or not Path(folder).is_absolute():
        return record
    above = f"{Path(folder).parent}/"

    def shortened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shortened(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shortened(inner) for inner in value]
        return value.removeprefix(above) if isinstance(value, str) else value

    return record.model_copy(update={"config": shortened(record.config)})


def _is_benchmark(path: Path) -> bool:
    """Whether a file is what scripts/benchmark.py leaves, rather than a run's record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # said of it where records are read
    return isinstance(content, dict) and isinstance(content.get("rows"), list) and "status" not in content


def _shown(path: Path) -> Path:
    """Relative to where one stands, where that is possible: a report that is passed on need not tell of its machine."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path
