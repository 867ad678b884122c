"""The growth benchmark: what it measures, what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from longspan.benchmark.growth import GrowthError, measure, parse_variant


def test_rows_state_cost_and_growth():
    rows = measure(["reformer:rounds=1,chunk=16", "full"], [64, 128], device="cpu", heads=1, head_dim=16, seconds=0.01)
    assert [(row["variant"], row["T"]) for row in rows[2:]] == [("reformer:rounds=1,chunk=16", 128), ("full", 128)]
    assert all(row["ms"] > 0 and row["peak_mib"] > 0 and row["live_pairs"] <= row["visited_pairs"] for row in rows)
    assert "exponent" not in rows[0] and rows[3]["flops_exponent"] > 1.5 > rows[2]["flops_exponent"]


def test_settings_are_read_as_what_they_look_like():
    assert parse_variant("reformer:rounds=2,chunks=sorted,buckets=null,dropout=0.5") == (
        "reformer", {"rounds": 2, "chunks": "sorted", "buckets": None, "dropout": 0.5},
    )  # fmt: skip
    for text, message in (("reformr", "is no attention"), ("local:window", "is no setting; give key=value")):
        with pytest.raises(GrowthError, match=message):
            parse_variant(text)


def test_a_wrong_variant_ends_with_a_message():
    script = Path(__file__).parents[2] / "scripts" / "attention_growth.py"
    done = subprocess.run([sys.executable, script, "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "error: 'nothing' is no attention" in done.stderr
