"""evaluate.py and predict.py as they are typed, in interpreters of their own: what they write, and what they say of a slip."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

from warm_process import run

ROOT = Path(__file__).parents[2]


def typed(*words):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_a_checkpoint_is_evaluated(small_checkpoint, tmp_path):
    words = [f"checkpoint={small_checkpoint}", "split=val", f"output={tmp_path / 'said.json'}"]
    done = typed("scripts/evaluate.py", *words)
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["accuracy"]["bits_per_byte"]["split"] == "val" and "said.json" in done.stdout
    assert said["command"] == " ".join(["python scripts/evaluate.py", *words])


def test_own_texts_are_scored(small_checkpoint, tmp_path):
    (tmp_path / "own.jsonl").write_text('{"text": "a short one"}\n{"text": "another"}\n')
    files = [f"data.path={tmp_path / 'own.jsonl'}", f"output={tmp_path / 'scores.csv'}"]
    done = typed("scripts/predict.py", f"checkpoint={small_checkpoint}", *files)
    assert "scores.csv (2 rows)" in done.stdout
    with (tmp_path / "scores.csv").open() as file:
        assert [int(row["tokens"]) for row in csv.DictReader(file)] == [11, 7]


def test_slips_are_named(small_checkpoint, tmp_path):
    for script, words, said in (
        ("evaluate.py", [], "checkpoint=... must be given"),
        ("evaluate.py", ["checkpoint=none.ckpt"], "does not exist"),
        ("predict.py", [f"checkpoint={small_checkpoint}"], "output=... must be given"),
    ):
        done = run(ROOT / "scripts" / script, *words, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
