"""Drawn calls of every kind against a float64 oracle: a few always, a hundred thousand by `pytest -m exhaustive`.

    pytest -m exhaustive tests/exhaustive [-n 2]      # about an hour on one idle core; -k blocked or -k triton for a part
    LONGSPAN_EXHAUSTIVE_SEED=1 pytest -m exhaustive   # other draws
    python tests/shared/exhaustive.py --processes 16  # the same without pytest

Shards leave their counts in pytest's cache, and SUMMARY.md is made of them.
"""

from __future__ import annotations

import json
import os

import pytest
from any_call import CALLS_A_PATTERN
from exhaustive import RUNS, drawn, shard
from interpreted import BACKENDS_HERE

FIRST_OF_A_FEW = 5_000_000  # numbers of calls that no shard of seed 0 draws
SEED = int(os.environ.get("LONGSPAN_EXHAUSTIVE_SEED", "0"))


def skip_without(name: str) -> None:
    if not set(RUNS[name].backends) <= set(BACKENDS_HERE):
        pytest.skip("a GPU is here: tests/gpu runs the compiled kernels")


@pytest.mark.parametrize(("name", "most"), [("blocked", 150), ("triton", 5)])
def test_a_few_calls(name, most):
    skip_without(name)
    found = drawn(RUNS[name], range(FIRST_OF_A_FEW, FIRST_OF_A_FEW + most * CALLS_A_PATTERN, CALLS_A_PATTERN))
    assert not found.failures, "\n".join(found.failures[:5])
    assert found.calls == most and len(found.kinds) > (25 if name == "blocked" else 8)


SHARDS = [(name, number) for name, run in RUNS.items() for number in range(run.shards)]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "number"), SHARDS, ids=lambda x: str(x))
def test_every_call(name, number, pytestconfig):
    skip_without(name)
    found = shard(name, number, SEED)
    folder = pytestconfig.cache.mkdir("exhaustive")
    (folder / f"{SEED}-{name}-{number}.json").write_text(json.dumps(vars(found)))
    assert not found.failures, f"{len(found.failures)} failures\n" + "\n".join(found.failures[:10])
