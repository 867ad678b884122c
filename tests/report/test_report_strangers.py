"""Reports from records of any content: nothing in them runs, and a bad one takes no other with it."""

from __future__ import annotations

import csv
import json
import re

import pytest
from left_records import leave

from longspan.report import write_report
from longspan.report.collect import collect
from longspan.report.equals import differing, keep_every_pair
from longspan.report.groups import sections


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def deep(levels=3000):
    return "[" * levels + "]" * levels


BAD = {
    "deep": lambda path: path.write_text(path.read_text().replace('"extra": {}', f'"extra": {{"a": {deep()}}}')),
    "bottomless": lambda path: path.write_text('{"a":' * 200_000),
    "empty": lambda path: path.write_text(""),
    "list": lambda path: path.write_text("[1]"),
    "figure 1e308": lambda path: changed(path, lambda c: c["cost"]["total_flops"].update(value=1e308)),
    "accuracy 1e308": lambda path: changed(path, lambda c: c["accuracy"]["accuracy"].update(value=-1e308)),
    "whole number": lambda path: changed(path, lambda c: c["cost"]["total_flops"].update(value=10**400)),
    "curve": lambda path: changed(path, lambda c: c.update(curves={"val/accuracy": [[1, 1e308], [10**30, 2]]})),
    "seconds": lambda path: changed(path, lambda c: c.update(seconds=1e308)),
    "trainer": lambda path: changed(path, lambda c: c["config"].update(trainer="abc", data=[1], task=7, model=None)),
    "hardware": lambda path: changed(path, lambda c: c.update(hardware={"gpus": 5, "cores": []})),
    "gpus": lambda path: changed(path, lambda c: c.update(hardware={"gpus": [[1]]})),
    "pattern": lambda path: changed(path, lambda c: c.update(extra={"pattern": [{"rows": ["f0", "f"], "causal": 1}]})),
    "ragged": lambda path: changed(
        path, lambda c: c.update(extra={"pattern": [{"rows": ["f0", "f"], "causal": 0, "length": 2, "layers": [0]}]})
    ),
    "breakdown": lambda path: changed(
        path,
        lambda c: c.update(extra={"accuracy_by_distance": {"test": [{"distance": 1e308, "accuracy": 1}, {"distance": 2}]}}),
    ),
    "seed": lambda path: changed(path, lambda c: c.update(seed=10**300)),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_does_not_take_the_good_ones_with_it(tmp_path, kind):
    leave(tmp_path / "runs", "good", "full", value=0.6)
    leave(tmp_path / "runs", "other", "local", value=0.5, cost=50)
    BAD[kind](leave(tmp_path / "runs", "bad", "local", seed=1, value=0.55))
    text = write_report([tmp_path / "runs"], tmp_path / "report").with_suffix(".md").read_text()
    assert "| full | 1 |" in text.replace("**", "") and "bad" in text + str(sorted(tmp_path.rglob("*")))


EVIL = ("=cmd|' /C calc'!A0", "<script>alert(1)</script>", "```\n\n# owned", "[x](javascript:alert(1))", "a|b")


def test_nothing_in_a_record_is_run_or_closes_its_place(tmp_path):
    for place, evil in enumerate(EVIL):
        path = leave(tmp_path / "runs", f"run{place}", evil, value=0.5 + place / 100, cost=100 + place)
        changed(path, lambda c, evil=evil: c.update(command=f"python train.py name='{evil}'", commit=evil))
        failed = leave(tmp_path / "runs", f"failed{place}", evil, status="failed", seed=1)
        changed(failed, lambda c, evil=evil: c.update(error=evil))
    page = write_report([tmp_path / "runs"], tmp_path / "report", title="<script>")
    markdown, html = page.with_suffix(".md").read_text(), page.read_text()
    fenced = re.search(r"^(`{3,})bash\n(.*?)^\1$", markdown, re.S | re.M)
    assert fenced is not None and len(fenced[1]) > 3 and "# owned" in fenced[2]
    outside = markdown.replace(fenced[0], "")
    assert "<script>" not in outside and "](javascript" not in outside and not re.search(r"^# owned", outside, re.M)
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (len(re.findall(r"\|", rows[0])), 7) for line in rows)
    assert html.count("<script") == 2 and "<script>alert" not in html
    for row in csv.DictReader((tmp_path / "report" / "table.csv").open()):
        assert not row["variant"].startswith(("=", "+", "@")) and not row["label"].startswith("=")


def test_runs_that_are_no_equals_are_said_to_be_none(tmp_path):
    sizes = {"data__max_length": 256, "trainer__max_steps": 300, "model__width": 64}
    leave(tmp_path / "runs", "a", "full", **sizes)
    leave(tmp_path / "runs", "b", "local", value=0.6, **sizes)
    [section] = sections(collect([tmp_path / "runs"]))[0]
    assert differing(section) == []
    leave(tmp_path / "runs", "c", "local", value=0.7, **{**sizes, "trainer__max_steps": 30})
    leave(tmp_path / "runs", "d", "local", value=0.7, **{**sizes, "data__max_length": 1024, "model__width": 128})
    text = write_report([tmp_path / "runs"], tmp_path / "report").with_suffix(".md").read_text()
    assert "Not comparable as they stand: tokens a sequence (data.max_length): 256 or 1024; " in text
    assert "steps (trainer.max_steps): 30 or 300; width (model.width): 64 or 128. Among all of them: Best" in text


def test_other_test_data_is_said(tmp_path):
    leave(tmp_path, "a", "full")
    changed(leave(tmp_path, "b", "local"), lambda c: c.update(data={"test": {"documents": 3}}))
    changed(leave(tmp_path, "c", "local", seed=1), lambda c: c.update(data={"test": {"documents": 4}}))
    assert differing(sections(collect([tmp_path]))[0][0]) == ["the test data are not the same"]


def test_patterns_that_keep_every_pair_are_pointed_out(tmp_path):
    for name, density in {"full": 257 / 512, "local": 257 / 512, "bigbird": 257 / 512, "strided": 0.2}.items():
        path = leave(tmp_path / "runs", name, name, data__max_length=256)
        causal = {"pattern": [{"causal": True}]}
        figures = {"density": {"value": density, "unit": ""}}
        changed(path, lambda c, figures=figures, causal=causal: (c["cost"].update(figures), c.update(extra=causal)))
    [section] = sections(collect([tmp_path / "runs"]))[0]
    assert keep_every_pair(section) == ["bigbird", "local"]
    text = write_report([tmp_path / "runs"], tmp_path / "report").with_suffix(".md").read_text()
    assert "bigbird, local keep every pair at this length, as full attention does" in text


def test_training_data_of_the_run_s_own_seed_are_the_same(tmp_path):
    for seed, drawn in ((0, 0), (1, 1)):
        for variant in ("full", "local"):
            made = {"train": {"windows": "endless", "seed": drawn}, "test": {"windows": 9, "seed": 0}}
            changed(leave(tmp_path, f"{variant}{seed}", variant, seed), lambda c, made=made: c.update(data=made))
    assert differing(sections(collect([tmp_path]))[0][0]) == []
    other = {"train": {"windows": "endless", "seed": 7}, "test": {"windows": 9, "seed": 0}}
    changed(leave(tmp_path, "odd", "local", 2), lambda c: c.update(data=other))
    assert differing(sections(collect([tmp_path]))[0][0]) == ["the train data are not the same"]


def split_of(held_out):
    test = {"sequences": 19, "cut": 10 - held_out, "classes": {"a": 10, "b": 9}}
    return {"train": {"sequences": 87, "cut": held_out}, "test": test}


def test_a_split_of_each_seed_that_all_variants_share_leaves_them_comparable(tmp_path):
    for seed in (0, 1):
        for variant in ("full", "local"):
            path = leave(tmp_path / "runs", f"{variant}{seed}", variant, seed)
            changed(path, lambda c, seed=seed: c.update(data=split_of(seed)))
    assert differing(sections(collect([tmp_path / "runs"]))[0][0]) == []
    text = write_report([tmp_path / "runs"], tmp_path / "report").with_suffix(".md").read_text()
    assert "Not comparable" not in text and "- Each seed has train, test data of its own, the same for all variants" in text
    assert "- Accuracies are of 19 test sequences a run: one more right answer is 0.053." in text
    changed(tmp_path / "runs" / "local1" / "record.json", lambda c: c.update(data=split_of(5)))
    unequal = ["the train data are not the same", "the test data are not the same"]
    assert differing(sections(collect([tmp_path / "runs"]))[0][0]) == unequal


def test_a_tie_has_no_sign_and_time_stands_beside_flops(tmp_path):
    for seed in (0, 1):
        for variant, flops, ms in (("full", 100.0, 50.0), ("local", 60.0, 55.0)):
            path = leave(tmp_path / "runs", f"{variant}{seed}", variant, seed, value=0.5)
            figures = {"total_flops": {"value": flops, "unit": ""}, "step_time": {"value": ms, "unit": "ms"}}
            changed(path, lambda c, figures=figures: c["cost"].update(figures))
    text = write_report([tmp_path / "runs"], tmp_path / "report").with_suffix(".md").read_text()
    assert "Local takes 60 % of full's training FLOPs, 110 % of its time a step, and is not clearly worse" in text
    assert "a difference of 0.0000 [0.0000, 0.0000] over 2 seeds" in text
