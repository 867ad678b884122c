"""Growth of cost with the length: exponents, from benchmarks and from runs; accuracy by length and by distance."""

import csv
import json
import math
import re

import pytest
from left_records import leave

from longspan.config.errors import RecordError
from longspan.records import Measure, Record
from longspan.report.build import write_report
from longspan.report.charts import accuracy_charts
from longspan.report.collect import collect
from longspan.report.groups import sections
from longspan.report.numbers import MISSING
from longspan.report.scaling import crossing, exponent, of_section, read_benchmark

PNG = b"\x89PNG\r\n\x1a\n"


def bench(path, rows, **more):
    content = {
        "command": "python scripts/benchmark.py --attention full",
        "commit": "abc",
        "dirty": False,
        "device": "cpu",
        "hardware": {"cpu": "a CPU", "cores": 2, "gpus": []},
        "threads": 2,
        "rows": rows,
        **more,
    }
    path.write_text(json.dumps(content))
    return path


def variant_rows(name, power, lengths=(1024, 2048, 4096)):
    return [
        {
            "variant": name,
            "T": T,
            "ms": 1e-6 * T**power,
            "peak_mib": T / 64,
            "heads": 4,
            "head_dim": 64,
            "causal": True,
            "dtype": "torch.float32",
        }
        for T in lengths
    ]


def test_exponents_are_slopes():
    assert exponent([(2.0, 8.0), (4.0, 64.0), (8.0, 512.0)]) == pytest.approx(3)
    assert exponent([(10.0, 5.0), (100.0, 5.0)]) == pytest.approx(0)
    assert exponent([(10.0, 5.0)]) is None and exponent([(10.0, 5.0), (10.0, 6.0)]) is None
    noisy = [(2.0, 2.0), (4.0, 4.4), (8.0, 7.6)]
    assert exponent(noisy) == pytest.approx(0.963, abs=0.001), "by all points, not by the ends alone"


def test_a_benchmark_of_variants(tmp_path):
    path = bench(
        tmp_path / "b.json", variant_rows("full", 2) + variant_rows("local:window=64", 1) + variant_rows("one", 1, (8,))
    )
    scaling = read_benchmark(path)
    assert [line.label for line in scaling.lines] == ["full", "local:window=64"], "one length tells of no growth"
    assert [line.time_exponent for line in scaling.lines] == pytest.approx([2, 1])
    assert [line.memory_exponent for line in scaling.lines] == pytest.approx([1, 1])
    assert "2 threads" in scaling.notes[0] and "4 heads of 64, float32, causal" in scaling.notes[1]
    time, memory = scaling.charts()
    assert (
        time.notes == {"full": "T^2.00", "local:window=64": "T^1.00, faster at all lengths"} and memory.y == "peak memory, MiB"
    )


def test_a_crossing_is_the_length_from_which_a_line_stays_below():
    quadratic = [(T, 1e-3 * T**2) for T in (100.0, 200.0, 400.0, 800.0)]
    linear = [(T, 0.3 * T) for T, _ in quadratic]
    assert crossing(linear, quadratic) == pytest.approx(300, rel=0.05), "straight lines of logarithms meet where the powers do"
    assert crossing(quadratic, linear) == math.inf and crossing([(T, y / 9) for T, y in linear], quadratic) == 0
    wavy = [(100.0, 5.0), (200.0, 80.0), (400.0, 80.0), (800.0, 9.0)]
    assert crossing(wavy, quadratic) == pytest.approx(200 * 2**0.5, rel=0.05), "not where it is ahead for a while"
    assert crossing([(7.0, 1.0)], quadratic) is None
    assert crossing([(T, 0.99 * y) for T, y in quadratic], quadratic) == math.inf, "as fast, and no faster"


def test_a_benchmark_says_from_where_each_variant_pays(tmp_path):
    rows = [{**row, "forward_ms": row["ms"] / 4} for row in variant_rows("dense", 2) + variant_rows("local", 1)]
    for row in rows:
        row["ms"] *= 3000 if row["variant"] == "local" else 1
        row["forward_ms"] *= 1500 if row["variant"] == "local" else 1
    scaling = read_benchmark(bench(tmp_path / "b.json", rows))
    assert [*scaling.headings()][4:6] == ["forward faster than dense", "both passes faster than dense"]
    assert {line.label: scaling.crossings(line) for line in scaling.lines} == {
        "dense": [MISSING, MISSING],
        "local": ["from 1,500", "from 3,100"],
    }
    assert scaling.charts()[0].notes["local"] == "T^1.00, faster from 3,100"


def test_a_comparison_s_sides_are_lines(tmp_path):
    rows = [
        {
            "case": "local 256",
            "shape": {"B": 1, "H": 8, "T": T, "D": 64},
            "causal": False,
            "dtype": "float32",
            "sides": {
                "longspan": {"both": {"ms": T}, "peak_mib": 1.0},
                "sdpa": {"both": {"ms": T * T}},
                "flex": {"unavailable": "no"},
            },
        }
        for T in (1024, 2048)
    ]
    lines = read_benchmark(bench(tmp_path / "b.json", rows)).lines
    assert {line.label: line.time_exponent for line in lines} == pytest.approx({"local 256": 1, "local 256: sdpa": 2})
    assert lines[1].memory == [] and lines[1].memory_exponent is None


def test_a_report_of_benchmarks_alone_and_beside_runs(tmp_path):
    path = bench(tmp_path / "b.json", variant_rows("full", 2) + variant_rows("<local>", 1))
    page = write_report([path], tmp_path / "out")
    text, words = page.read_text(), page.with_suffix(".md").read_text()
    assert f"| full | 1,024 to 4,096 | T^2.00 | T^1.00 | {MISSING} | 16.8 | 64.0 |" in words
    assert "python scripts/benchmark.py --attention full" in words and "![time and memory" in words
    assert "T<sup>2.00</sup>" in text and "<local>" not in text and "&lt;local&gt;" in text
    assert (page.parent / "scaling-benchmark.png").read_bytes().startswith(PNG)
    [row, *_] = csv.DictReader((page.parent / "scaling.csv").open())
    assert row["variant"] == "full" and row["T"] == "1024" and float(row["time_exponent"]) == pytest.approx(2)
    assert "$T^{2.00}$" in (page.parent / "table.tex").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert data["sections"][0]["lines"][0]["means"]["full"][0] == pytest.approx([1024, 1.04858])

    leave(tmp_path / "runs", "a", "full")
    both = write_report([tmp_path / "runs", path], tmp_path / "both")
    assert both.read_text().count('data-section="') == 2 and "How cost grows" in both.read_text()


def test_what_is_no_benchmark_is_said(tmp_path):
    path = bench(tmp_path / "b.json", [{"variant": "full", "ms": 1.0}])  # no T
    with pytest.raises(RecordError, match=r"b\.json is not what scripts/benchmark\.py writes"):
        write_report([path], tmp_path / "out")
    other = tmp_path / "other.json"
    other.write_text('{"rows": 3}')
    assert collect([other]).broken[0][0].name == "other.json", "read as a record, and refused as one"
    with pytest.raises(RecordError):
        collect([tmp_path / "none.json"])


@pytest.fixture
def runs_at_lengths(tmp_path):
    """full and local at three lengths, two seeds; equal tokens a step."""
    for length in (512, 1024, 2048):
        for variant, power in (("full", 2), ("local", 1)):
            for seed in range(2):
                path = leave(
                    tmp_path / "runs",
                    f"{variant}{length}-{seed}",
                    variant,
                    seed,
                    0.5,
                    data__max_length=length,
                    data__batch_size=8192 // length,
                )
                record = Record.load(path)
                record.cost["tokens_per_second"] = Measure(value=1e9 / length ** (power - 1), unit="tokens/s")
                record.cost["peak_memory"] = Measure(
                    value=100.0 + length * (variant == "full"), unit="MiB allocated on the device"
                )
                record.save(path)
    return tmp_path / "runs"


def test_runs_at_several_lengths(runs_at_lengths, tmp_path):
    [section], _ = sections(collect([runs_at_lengths]))
    scaling = of_section(section)
    assert [line.label for line in scaling.lines] == ["full", "local"], "lengths and what follows from them are no names"
    assert [line.time_exponent for line in scaling.lines] == pytest.approx([2, 1])
    assert scaling.lines[1].memory_exponent == pytest.approx(0)
    page = write_report([runs_at_lengths], tmp_path / "out")
    assert (page.parent / "scaling.png").is_file() and "Cost as sequences grow" in page.read_text()
    assert "| local | 512 to 2,048 | T^1.00 | T^0.00 |" in page.with_suffix(".md").read_text()


def test_runs_of_one_length_have_no_growth(tmp_path):
    leave(tmp_path, "a", "full", data__max_length=512)
    [section], _ = sections(collect([tmp_path]))
    assert of_section(section) is None


def test_accuracy_by_length_and_by_distance(tmp_path):
    for seed in range(2):
        path = leave(tmp_path / "runs", f"full{seed}", "full", seed)
        record = Record.load(path)
        rows = [{"length": x, "value": 3 / x + seed, "items": 5} for x in (1.0, 2.5, 5.5)]
        few = {"length": 700.0, "value": 9.0, "items": 0.03}  # less than one in 500 of all
        told = {"figure": "bits_per_byte", "length": "bytes before it", "higher_is_better": False}
        wrong = {**told, "rows": [{"length": 1.0, "value": 99.0, "items": 1}]}
        record.extra = {
            "accuracy_by_length": {
                "val": wrong,
                "test": {**told, "rows": [{"length": 0.0, "value": 9.0, "items": 9}, *rows, few]},
            },
            "accuracy_by_distance": {"val": [{"distance": d, "accuracy": 1 / d, "answers": 3} for d in (1.0, 2.0)]},
        }
        record.save(path)
    [section], _ = sections(collect([tmp_path / "runs"]))
    by_length, by_distance = accuracy_charts(section)
    expected = {1.0: 3.5, 2.5: 1.7, 5.5: 3 / 5.5 + 0.5}
    assert dict(by_length.means["full"]) == pytest.approx(expected), (
        "test split, mean of seeds, nothing at 0 or of hardly any items"
    )
    assert by_length.y == "bits per byte  (lower is better)" and by_length.x == "bytes before it"
    assert by_distance.means["full"] == [(1.0, 1.0), (2.0, 0.5)]
    page = write_report([tmp_path / "runs"], tmp_path / "out")
    for name in ("accuracy-by-length", "accuracy-by-distance"):
        assert f"({name}.png)" in page.with_suffix(".md").read_text() and f'data-lines="{name}"' in page.read_text()
        assert (page.parent / f"{name}.png").read_bytes().startswith(PNG)


def test_breakdowns_made_by_something_else_are_left_out(tmp_path):
    path = leave(tmp_path, "a", "full")
    record = Record.load(path)
    record.extra = {"accuracy_by_length": {"test": [1, 2]}, "accuracy_by_distance": 7}
    record.save(path)
    [section], _ = sections(collect([tmp_path]))
    assert accuracy_charts(section) == []
