"""Makes SUMMARY.md of what the shards counted, once all of a seed are there."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

SUMMARY = Path(__file__).with_name("SUMMARY.md")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if "exhaustive" not in (session.config.option.markexpr or "").split() or hasattr(session.config, "workerinput"):
        return
    seed = os.environ.get("LONGSPAN_EXHAUSTIVE_SEED", "0")
    folder = session.config.cache.mkdir("exhaustive")  # type: ignore[union-attr]
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob(f"{seed}-*.json"))}
    if parts:
        (folder / "SUMMARY.md").write_text(summary(seed, parts))
        if not session.testsfailed and not session.config.option.collectonly:
            SUMMARY.write_text(summary(seed, parts))


def summary(seed: str, parts: dict[str, dict]) -> str:
    """What all shards together saw."""
    lines = ["# Drawn calls against the float64 oracle", "", "`pytest -m exhaustive tests/exhaustive`", ""]
    lines += [f"Seed {seed}; {datetime.now(UTC):%Y-%m-%d}; {_versions()}.", ""]
    for run, backends in (("blocked", "dense and blocked"), ("triton", "the Triton kernels, interpreted")):
        own = [part for name, part in parts.items() if name.split("-")[1] == run]
        calls, failures = sum(part["calls"] for part in own), [x for part in own for x in part["failures"]]
        if not own:
            continue
        lines += [f"## {calls:,} calls on {backends} ({len(own)} shards): {len(failures)} out of bounds", ""]
        kinds: Counter = Counter()
        for part in own:
            kinds.update(part["kinds"])
        lines += ["Calls of each kind: " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items())) + ".", ""]
        lines += ["| backend and result | farthest off, of what rounding allows | call |", "| --- | --- | --- |"]
        lines += [f"| {name} | {value:.3f} | {call} |" for name, (value, call) in _worst(own, "of_bound")]
        lines += ["", "Largest relative error of a whole tensor where scores are about 1 or less:", ""]
        lines += ["| backend, dtype and result | relative error | call |", "| --- | --- | --- |"]
        lines += [f"| {name} | {value:.1e} | {call} |" for name, (value, call) in _worst(own, "relative")]
        lines += [""]
        lines += [f"- {failure}" for failure in failures[:50]] + ([""] if failures else [])
    return "\n".join(lines).rstrip() + "\n"


def _worst(parts: list[dict], name: str) -> list[tuple[str, tuple[float, int]]]:
    found: dict[str, tuple[float, int]] = {}
    for part in parts:
        for key, (value, call) in part[name].items():
            if key not in found or value > found[key][0]:
                found[key] = (value, call)
    return sorted(found.items())


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        triton = f", triton {version('triton')}"
    except PackageNotFoundError:
        triton = ""
    return f"Python {platform.python_version()}, torch {torch.__version__}{triton}, {platform.machine()}"
