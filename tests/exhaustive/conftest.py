"""Makes SUMMARY.md of what the shards counted, once all of a seed are there."""

from __future__ import annotations

import json
import os

import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    words = (session.config.option.markexpr or "").split()
    if "exhaustive" not in words or "not" in words or hasattr(session.config, "workerinput"):
        return
    seed = os.environ.get("LONGSPAN_EXHAUSTIVE_SEED", "0")
    from exhaustive import SUMMARY, summary

    folder = session.config.cache.mkdir("exhaustive")  # type: ignore[union-attr]
    parts = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob(f"{seed}-*.json"))}
    if parts:
        (folder / "SUMMARY.md").write_text(summary(seed, parts))
        if not session.testsfailed and not session.config.option.collectonly:
            SUMMARY.write_text(summary(seed, parts))
