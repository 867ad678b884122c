"""The search for launches: candidates are compared and timed, wrong ones left out, and the table is what the kernels read."""

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("a GPU is here: --tune runs compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

from longspan.benchmark import tune
from longspan.benchmark.tune import Problem, Runner, candidates, problems, source, table, tune_one
from longspan_kernels.block_sparse.triton.configs import HOPPER, launch_of, launched_as, row_kind
from longspan_kernels.launch.launcher import Launch


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(tune.LINES, "short", (tune.Local(40), True))


def small(kernel, lines="short"):
    return Problem(kernel, 16, lines, torch.float16, 100, 16)


@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_a_candidate_that_computes_something_else_cannot_win(monkeypatch, kernel):
    right, wrong = Launch(4, 2), Launch(8, 3, one_loop=True)
    plain = Runner._run

    def run(self, layout):
        component = layout.components[0]
        out = plain(self, layout)
        return [x * 2 for x in out] if launch_of(kernel, self.q, component) == wrong else out

    monkeypatch.setattr(Runner, "_run", run)
    row = tune_one(small(kernel), "cpu", 0.01, [right, wrong])
    assert row["best"] == source(right) and list(row["ms"]) == [str(right)]
    assert "differs" in row["failed"][str(wrong)]


def test_a_problem_that_no_candidate_solves_is_told_and_ends_nothing(monkeypatch):
    def run(self, layout):
        raise RuntimeError("no room")

    monkeypatch.setattr(Runner, "_run", run)
    row = tune_one(small("forward"), "cpu", 0.01, [Launch(4, 2)])
    assert row["best"] is None and "no room" in row["failed"][str(Launch(4, 2))]
    assert table([row]) == ""


def test_what_is_printed_is_the_table():
    rows = [{"kernel": k, "width": d, "lines": lines, "best": source(launch)} for (k, d, lines), launch in HOPPER.items()]
    assert eval("{" + table(rows) + "}", {"Launch": Launch}) == HOPPER
    assert {(p.kernel, p.head_dim, p.lines) for p in problems()} >= set(HOPPER)


def test_problems_have_the_lines_they_stand_for():
    for problem in problems():
        # Another pattern stands for "short" here, and both backward kernels take the same layout.
        if problem.lines != "short" and problem.kernel != "backward_rows":
            length = 2048 if problem.lines == "bits" else 8192  # a predicate is asked about every pair
            layout = Problem(problem.kernel, problem.head_dim, problem.lines, length=length, width=128).layout("cpu")
            most = max(layout.components, key=lambda c: len(c.rows.index))
            assert row_kind(most) == {"wide": "long"}.get(problem.lines, problem.lines)
        assert len(set(candidates(problem, True))) == len(list(candidates(problem, True))) >= 2
        assert not any(launch.by_tma for launch in candidates(problem, False))


def test_another_launch_holds_inside_its_block_alone():
    component = small("forward").layout("cpu").components[0]
    q = torch.zeros(1, 1, 1, 16, dtype=torch.float16)
    before, other = launch_of("forward", q, component), Launch(8, 5)
    with launched_as(forward=other):
        with launched_as(forward=before):
            assert launch_of("forward", q, component) == before
        assert launch_of("forward", q, component) == other
    assert launch_of("forward", q, component) == before
