"""evaluate.py and predict.py as they are typed, in processes of their own: what they write, and what they say of a slip."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
from warm_process import run

ROOT = Path(__file__).parents[2]


def typed(*words):
    done = run(*words, cwd=ROOT)
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
    done = typed("scripts/predict.py", f"checkpoint={small_checkpoint.parents[1]}", *files)
    best = max(small_checkpoint.parent.glob("best*"))
    assert "scores.csv (2 rows)" in done.stdout and f"{small_checkpoint.parents[1]}: taking {best}" in done.stderr
    with (tmp_path / "scores.csv").open() as file:
        assert [int(row["tokens"]) for row in csv.DictReader(file)] == [11, 7]


# (script, its words, what is said)
SLIPS = [
    ("evaluate.py", [], "checkpoint=... must be given"),
    ("evaluate.py", ["checkpoint=none.ckpt"], "none.ckpt does not exist"),
    ("predict.py", ["checkpoint={here}"], "output=... must be given"),
    ("generate.py", ["checkpoint=none.ckpt", "prompt=a"], "none.ckpt does not exist"),
    ("generate.py", ["checkpoint={here}", "prompt=a", "top_k=many"], "top_k=many: give a whole number"),
    ("evaluate.py", ["checkpoint=."], "checkpoint=. holds no checkpoint; give a run's folder, or a .ckpt file"),
    ("predict.py", ["checkpoint=.", "output=scores.csv"], "checkpoint=. holds no checkpoint; give a run's folder"),
    ("generate.py", ["checkpoint=.", "prompt=a"], "checkpoint=. holds no checkpoint; give a run's folder"),
    ("attention_map.py", ["checkpoint=.", "output=map.png"], "checkpoint=. holds no checkpoint; give a run's folder"),
    ("attention_map.py", ["checkpoint=none.ckpt", "output=map.png"], "none.ckpt does not exist"),
]


@pytest.mark.parametrize(("script", "words", "said"), SLIPS, ids=[f"{script} {' '.join(words)}" for script, words, _ in SLIPS])
def test_slips_are_named_before_torch_is_loaded(script, words, said, small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, *(word.format(here=small_checkpoint) for word in words)])
    monkeypatch.setitem(sys.modules, "torch", None)  # loading it now raises ImportError
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    assert stop.value.code == 2 and said in capsys.readouterr().err
