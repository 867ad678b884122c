"""Figures of classes on the page and on the screen: pooled over seeds, and none where a record's are of another kind."""

from __future__ import annotations

import io

import pytest
from left_records import leave
from rich.console import Console

from longspan.records import Record
from longspan.report import print_summary, write_report
from longspan.report.classes import table_of

TOLD = {
    "classes": [
        {"class": "no <gene>", "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "support": 5},
        {"class": "gene|+", "precision": None, "recall": 0.0, "f1": 0.0, "support": 2},
    ],
    "confusion": [[3, 2], [2, 0]],
}


def left(folder, *, seed=0, per_class=None):
    path = leave(folder, f"run{seed}", "local", seed)
    record = Record.load(path)
    record.extra = {"per_class": {"test": TOLD if per_class is None else per_class}}
    record.save(path)
    return record


def test_seeds_are_pooled(tmp_path):
    table = table_of([left(tmp_path), left(tmp_path, seed=1)], "local")
    assert table.confusion == [[6, 4], [4, 0]]
    assert [(row.items, row.precision) for row in table.rows] == [(10, 0.75), (4, None)]


def test_pages_show_them_inert(tmp_path):
    left(tmp_path / "runs")
    page = write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    assert "no &lt;gene&gt;" in page and "no <gene>" not in page and "Rows are the true classes" in page
    text = (tmp_path / "out" / "report.md").read_text()
    assert "### Classes, local, test split" in text and "| 0.750 | 0.600 | 0.667 | 5 |" in text
    assert text.count("gene\\|+") + text.count("gene&#124;+") >= 2, "a bar in a name must not end its cell"


def test_evaluate_prints_them_and_training_does_not(tmp_path):
    record = left(tmp_path)
    for classes in (True, False):
        out = io.StringIO()
        print_summary(record, Console(file=out, width=80), classes=classes)
        assert ("precision" in out.getvalue()) == classes == ("true, as predicted" in out.getvalue())


STRANGE = [
    {},
    {"classes": []},
    {"classes": 3},
    {"classes": [7], "confusion": [[1]]},
    {"classes": [{"class": "a"}], "confusion": None},
    {"classes": [{**TOLD["classes"][0], "f1": 7}], "confusion": None},
    {"classes": TOLD["classes"], "confusion": [["x"]]},
]


@pytest.mark.parametrize("strange", STRANGE)
def test_strangers_figures_are_left_out(tmp_path, strange):
    assert table_of([left(tmp_path, per_class=strange)], "local") is None


def test_several_labels_and_many_classes_have_no_matrix(tmp_path):
    many = [{**TOLD["classes"][0], "class": str(n)} for n in range(70)]
    table = table_of([left(tmp_path, per_class={"classes": many, "confusion": [[1] * 70] * 70})], "local")
    assert table.confusion is None and len(table.rows) == 60
    table = table_of([left(tmp_path, per_class={**TOLD, "confusion": None})], "local")
    assert table.confusion is None and len(table.rows) == 2
