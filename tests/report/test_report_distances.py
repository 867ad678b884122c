"""Accuracy against distance, from records alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from left_records import leave

from longspan.report.collect import collect
from longspan.report.distances import accuracy_against_distance, reaches
from longspan.report.groups import sections

SCRIPT = Path(__file__).parents[2] / "scripts" / "accuracy_by_distance.py"


def told(folder, name, rows, split="test", **given):
    path = leave(folder, name, metric="accuracy", data="NeedleDataModule", **given)
    record = json.loads(path.read_text())
    record["extra"] = {"accuracy_by_distance": {split: [{"distance": d, "accuracy": a, "answers": 9} for d, a in rows]}}
    path.write_text(json.dumps(record))


def section_of(folder):
    (section,) = sections(collect([folder]))[0]
    return section


def test_seeds_are_averaged_and_runs_of_one_distance_each_are_joined(tmp_path):
    for seed, far in ((0, 0.5), (1, 0.7)):
        told(tmp_path, f"full{seed}", [(64.0, 1.0), (1500.0, far)], seed=seed)
    for distance, share in ((64, 0.9), (1500, 0.1)):
        told(tmp_path, f"local{distance}", [(float(distance), share)], variant="local", split="val", data__distance=distance)
    full, local = sorted(reaches(section_of(tmp_path)), key=lambda reach: reach.label)
    assert [(d, s.n, pytest.approx(s.mean)) for d, s in full.points] == [(64.0, 2, 1.0), (1500.0, 2, 0.6)]
    assert full.points[1][1].sd == pytest.approx(0.02**0.5) and full.baseline == 0.4
    assert local.label == "local" and [(d, s.mean) for d, s in local.points] == [(64.0, 0.9), (1500.0, 0.1)]


def test_a_picture_is_drawn_where_there_are_two_distances(tmp_path):
    told(tmp_path / "runs", "a", [(64.0, 1.0), (256.0, 0.5)])
    assert accuracy_against_distance(section_of(tmp_path / "runs"), tmp_path / "out" / "far.png")
    assert (tmp_path / "out" / "far.png").stat().st_size > 5000
    told(tmp_path / "one", "a", [(64.0, 1.0)])
    assert not accuracy_against_distance(section_of(tmp_path / "one"), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_script_draws_and_says_what_is_missing(tmp_path):
    told(tmp_path / "runs", "a", [(64.0, 1.0), (256.0, 0.5)])
    command = [sys.executable, SCRIPT, tmp_path / "runs", "-o", tmp_path / "far.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "full, n=1: 64: 1.0000, 256: 0.5000" in done.stdout and (tmp_path / "far.png").exists()
    leave(tmp_path / "other", "b")
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "other", "-o", tmp_path / "b.png"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "no complete run tells accuracy at two distances" in done.stderr
