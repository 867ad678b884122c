"""The benchmark of a pattern's first call."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from longspan.benchmark import first_call


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for name, length in (("LENGTH", 64), ("OTHER", 50), ("LONG", 128), ("HEADS", 2), ("WIDTH", 16)):
        monkeypatch.setattr(first_call, name, length)


def test_what_is_measured_of_one_process():
    found = first_call.first_call("Local(16)", True, "cpu")
    assert set(found) == {"forward", "backward", "again", "at_50", "at_128"}
    assert all(value > 0 for value in found.values())


def test_a_process_for_each_pattern_with_a_cold_cache_and_a_warm_one(monkeypatch):
    asked = []

    def run(command, env, **rest):
        asked.append((command[1:], env["TRITON_CACHE_DIR"]))
        return SimpleNamespace(returncode=0, stdout="a line before\n" + json.dumps({"forward": len(asked)}))

    monkeypatch.setattr(subprocess, "run", run)
    rows = list(first_call.measure("cuda"))
    assert [row["cache"] for row in rows[:4]] == ["cold", "warm", "cold", "warm"]
    assert [row["forward"] for row in rows] == list(range(1, 2 * len(first_call.CASES) + 1))
    assert asked[0] == (["-m", "longspan.benchmark.first_call", "BigBird(64, 3, 3, 2)", "0", "cuda"], asked[1][1])
    caches = [cache for _, cache in asked]
    assert caches[::2] == caches[1::2] and len(set(caches)) == len(first_call.CASES)


def test_a_process_that_fails_is_told_with_what_it_said(monkeypatch):
    monkeypatch.setattr(first_call, "CASES", [("Lokal(3)", True)])
    with pytest.raises(RuntimeError, match=r"(?s)longspan.benchmark.first_call.*failed.*Lokal"):
        next(iter(first_call.measure("cpu")))
