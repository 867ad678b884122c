"""The suite that times a genome's loader beside training steps: a row each, kept as they come, and what it cannot do."""

import json
from pathlib import Path

import pytest
from warm_process import run

from longspan.benchmark import loader
from longspan.config.errors import BenchmarkError
from longspan.data.readers import read_fasta

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def test_the_genome_is_the_same_each_time_and_of_the_length_asked_for(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        loader.write_genome(tmp_path / f"{name}.fa", 1007, seed)
    texts = {name: (tmp_path / f"{name}.fa").read_text() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]
    assert max(map(len, texts["a"].splitlines())) == loader.LINE
    assert "".join(texts["a"].splitlines()[1:]).strip("ACGT") == ""
    assert sum(map(len, texts["a"].splitlines()[1:])) == 1007
    [record] = read_fasta(tmp_path / "a.fa")
    assert len(record.tokens) == 1007


def test_each_row_is_printed_and_kept(tmp_path):
    output = tmp_path / "found.json"
    words = [
        "--suite",
        "loader",
        "--device",
        "cpu",
        "--lengths",
        "256",
        "--bases",
        "20000",
        "--steps",
        "3",
        "--workers",
        "0",
        "1",
    ]
    done = run(SCRIPT, *words, "--attention", "local:window=16", "-o", output, check=True)
    found = json.loads(output.read_text())
    encoding, *rows = found["rows"]
    assert encoding["bases"] == 20000 and encoding["per_second"] > 0
    assert [(row["case"], row["workers"]) for row in rows] == [
        ("loader alone", 0),
        ("loader alone", 1),
        ("training", 0),
        ("training", 1),
    ]
    for row in rows[:2]:
        assert row["bases"] == found["model"]["batch"] * (found["model"]["warmup_steps"] + 3) * 256
        assert row["per_second"] == pytest.approx(row["bases"] / row["seconds"])
    for row in rows[2:]:
        assert row["step_time"] > 0 and row["tokens_per_second"] > 0 and row["parameters"] > 0
        assert 0 < row["data_time_share"] < 1
    assert done.stderr.count("T=256") == 4, "a line a row"
    assert "GPU available" not in done.stderr


@pytest.mark.parametrize(
    ("attention", "bases", "said"),
    [
        (["lnear"], 10_000, "linear"),
        (["dense"], 10_000, "full"),
        (["local"], 600, "--bases 600"),
    ],
)
def test_what_it_cannot_time_is_said_first(attention, bases, said):
    rows = []
    with pytest.raises(BenchmarkError, match=said):
        loader.measure(attention, [64], [0], device="cpu", bases=bases, size=loader.Size(), each=rows.append)
    assert not rows
