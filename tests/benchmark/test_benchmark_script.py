"""The benchmark's command line: a slip gets a line before anything is timed, and what was typed is kept to repeat."""

import argparse
import json
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from warm_process import run

from longspan.benchmark import content, padded

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lengths", "-5", "10"], "argument --lengths: -5 must be a whole number, 1 or more"),
        (["--lengths", "64", "--batch", "0"], "argument --batch: 0 must be a whole number, 1 or more"),
        (["--lengths", "64", "--device", "cuda"], "sees no GPU here; give --device cpu"),
        (["--suite", "first-call", "--device", "cpu"], "it needs a CUDA device"),
        (
            ["--suite", "linear", "--device", "cpu", "--only", "dleta"],
            "--only dleta names no case; choose among linear, gated, delta",
        ),
        (
            ["--suite", "content", "--device", "cpu", "--only", "moba", "--lengths", "2048", "512"],
            "--lengths 512 is too short for moba 512x3; give a longer one, or other cases by --only",
        ),
    ],
)
def test_slips_are_said_before_anything_is_timed(words, said):
    if "GPU" in said and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run(SCRIPT, *(words if "--suite" in words else ["--attention", "full", *words]))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_the_command_is_kept_as_it_was_typed_and_names_no_folder_of_the_machine(tmp_path):
    words = ["--pattern", "Local(8) | Strided(16)", "--lengths", "64", "--heads", "1", "--head-dim", "16", "--seconds", "0.01"]
    output = tmp_path / "found.json"
    run(SCRIPT, *words, "--device", "cpu", "-o", output, cwd=tmp_path, check=True)
    command = json.loads(output.read_text())["command"]
    assert shlex.split(command) == ["python", "scripts/benchmark.py", *words, "--device", "cpu", "-o", str(output)]


def test_content_is_timed_beside_dense_attention(tmp_path):
    output = tmp_path / "found.json"
    words = ["--suite", "content", "--only", "moba 64x8", "--lengths", "512", "--seconds", "0.01", "--device", "cpu"]
    run(SCRIPT, *words, "-o", output, check=True)
    (row,) = json.loads(output.read_text())["rows"]
    assert row["case"] == "moba 64x8" and row["shape"]["T"] == 512
    assert row["speedup"] == pytest.approx(row["sides"]["dense"]["ms"] / row["sides"]["longspan"]["ms"])


@pytest.mark.parametrize("mode", [False, True, "reduce-overhead"])
def test_content_is_compiled_where_it_is_asked_for(mode, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module, mode: asked.append(mode) or module)
    moba = next(case for case in content.CASES if case.name == "moba 64x8")
    content.ours(moba, 512, "cpu", mode)()
    assert asked == {False: [], True: [None], "reduce-overhead": ["reduce-overhead"]}[mode]


def test_a_compiled_case_has_the_whole_limit_of_compilations(monkeypatch):
    """A case past torch.compile's limit of recompilations would run eagerly, and be timed as compiled."""
    left = []

    def compiled(module, mode):
        left.append(len(torch._dynamo.eval_frame._debug_get_cache_entry_list(type(module).forward)))
        return compile_by(module, backend="eager")

    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    for _ in content.measure([128, 160], "cpu", 0.01, ["routing", "sinkhorn"], True):
        pass
    assert left == [0] * 4


def test_padded_batches_are_timed_beside_whole_ones(tmp_path):
    output = tmp_path / "found.json"
    words = ["--suite", "padded", "--lengths", "160", "--seconds", "0.01", "--device", "cpu"]
    run(SCRIPT, *words, "-o", output, check=True)
    rows = json.loads(output.read_text())["rows"]
    assert [row["case"] for row in rows] == list(padded.CASES)
    for row in rows:
        assert set(row["sides"]) == {"padded", "whole", "dense"} and all(side["ms"] > 0 for side in row["sides"].values())
        assert row["lengths"][0] == 80 and row["lengths"][-1] == 160


def test_a_suite_without_its_peers():
    plans = runpy.run_path(str(SCRIPT))["plans"]
    alone = plans(argparse.Namespace(suite="gpu", only=["bigbird"], alone=True, peer=[]))
    assert len(alone) == 2 and {plan.sides for plan in alone} == {("longspan",)}


def test_a_suite_is_timed_as_its_plans_say():
    plans = runpy.run_path(str(SCRIPT))["plans"]
    chosen = plans(argparse.Namespace(suite="gpu-long", only=None, alone=False, peer=["mine"]))
    assert [plan.heated for plan in chosen] == [False, False, False, True, True]
    assert {plan.sides[-1] for plan in chosen} == {"mine"}
