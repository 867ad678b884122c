"""The growth benchmark: what it measures, what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from warm_process import run

from longspan.benchmark.growth import measure, parse_variant
from longspan.config.errors import BenchmarkError


def test_rows_state_cost_and_growth():
    rows = measure(["reformer:rounds=1,chunk=16", "full"], [64, 128], device="cpu", heads=1, head_dim=16, seconds=0.01)
    assert [(row["variant"], row["T"]) for row in rows[2:]] == [("reformer:rounds=1,chunk=16", 128), ("full", 128)]
    assert all(row["ms"] > 0 and row["peak_mib"] > 0 and row["live_pairs"] <= row["visited_pairs"] for row in rows)
    assert "exponent" not in rows[0] and rows[3]["flops_exponent"] > 1.5 > rows[2]["flops_exponent"]


def test_settings_are_read_as_what_they_look_like():
    assert parse_variant("reformer:rounds=2,chunks=sorted,buckets=null,dropout=0.5") == (
        "reformer",
        {"rounds": 2, "chunks": "sorted", "buckets": None, "dropout": 0.5},
    )
    for text, message in (("reformr", "is no attention"), ("local:window", "is no setting; give key=value")):
        with pytest.raises(BenchmarkError, match=message):
            parse_variant(text)


SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def test_the_script_sweeps_variants_and_draws_the_picture(tmp_path):
    words = [
        "--attention",
        "local:window=32",
        "full",
        "--lengths",
        "128",
        "256",
        "512",
        "--heads",
        "1",
        "--head-dim",
        "16",
        "--seconds",
        "0.05",
        "--device",
        "cpu",
        "-o",
        str(tmp_path / "scaling.json"),
    ]
    done = run(SCRIPT, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    content = json.loads((tmp_path / "scaling.json").read_text())
    assert [row["variant"] for row in content["rows"]] == ["local:window=32", "full"] * 3
    assert content["command"].endswith(" ".join(words)) and content["hardware"]["cores"]
    line = next(line for line in done.stdout.splitlines() if "local:window=32" in line)
    assert line.count("T^") == 2, "of time and of memory"


def test_a_variant_without_the_memory_is_left_out_from_there_on(monkeypatch):
    from longspan.benchmark import growth

    made = growth._steps

    def step(module, length, *sizes):
        if length >= 128 and module.causal and "Full" in repr(module):
            raise torch.OutOfMemoryError("no room")
        return made(module, length, *sizes)

    monkeypatch.setattr(growth, "_steps", step)
    seen = []
    rows = measure(
        ["full", "local:window=8"],
        [64, 128, 256],
        device="cpu",
        heads=1,
        head_dim=16,
        seconds=0.01,
        each=lambda rows: seen.append(len(rows)),
    )
    assert [(row["variant"], row["T"]) for row in rows if "unavailable" in row] == [("full", 128)]
    assert [row["T"] for row in rows if row["variant"] == "local:window=8"] == [64, 128, 256]
    assert seen == [2, 4, 5]


def test_dense_attention_is_torch_s_own_and_each_direction_is_timed():
    rows = measure(["dense", "full"], [32], device="cpu", heads=1, head_dim=16, seconds=0.01)
    assert [row["variant"] for row in rows] == ["dense", "full"] and rows[0]["live_pairs"] == rows[1]["live_pairs"]
    assert all(row["forward_ms"] > 0 for row in rows)


def test_a_wrong_variant_ends_with_a_message():
    done = run(SCRIPT, "--attention", "nothing")
    assert done.returncode == 2 and "error: 'nothing' is no attention" in done.stderr
