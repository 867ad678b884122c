"""The engines that share out devices: Ray and submitit where they are installed; a search by Optuna."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path

import pytest

from longspan.config.errors import ConfigError
from longspan.sweeps import engines
from longspan.sweeps.command import main
from longspan.sweeps.drive import Sweep
from longspan.sweeps.engines import Local, Slurm, engine_for
from longspan.sweeps.plan import grid_jobs, read_sweep
from longspan.sweeps.process import Outcome
from longspan.sweeps.search import SearchSweep
from longspan.sweeps.table import LiveTable

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
STAND_IN = ROOT / "tests" / "shared" / "stand_in_train.py"


def settings_and_jobs(folder: Path, *words: str):
    settings = read_sweep([f"sweep.output={folder}", "sweep.name=night", *words], CONF)
    return settings, grid_jobs(settings, CONF)


def test_an_engine_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    for engine in ("ray", "slurm"):
        settings, jobs = settings_and_jobs(tmp_path, f"sweep.engine={engine}")
        with pytest.raises(ConfigError, match=r"pip install 'longspan\[sweep\]'"):
            engine_for(settings, jobs, STAND_IN, tmp_path / ".stop")
    settings, jobs = settings_and_jobs(tmp_path, "sweep.gpus=[0,1]")
    chosen = engine_for(settings, jobs, STAND_IN, tmp_path / ".stop")
    assert isinstance(chosen, Local)
    chosen.close()


def test_ray_gives_each_run_gpus_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    before = signal.getsignal(signal.SIGTERM)
    settings, jobs = settings_and_jobs(tmp_path, "sweep.engine=ray", "sweep.gpus=[4,5]", "seed=1,13,16")
    assert Sweep(settings, STAND_IN).run(jobs) == {"seed1": "complete", "seed13": "failed", "seed16": "complete"}
    places = [json.loads(line)["place"] for job in jobs for line in (job.folder / "starts").read_text().splitlines()]
    assert len(places) == 4 and set(places) <= {"4", "5"}
    assert signal.getsignal(signal.SIGTERM) is before, "Ray's handler does not outlive the sweep"


def test_submitit_runs_the_jobs_and_finds_them_again(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(Slurm, "poll_seconds", 0.1)
    monkeypatch.setattr(engines, "Slurm", lambda *args: Slurm(*args, cluster="local"))
    settings, jobs = settings_and_jobs(tmp_path, "sweep.engine=slurm", "seed=1,13")
    assert Sweep(settings, STAND_IN).run(jobs) == {"seed1": "complete", "seed13": "failed"}
    assert all((job.folder / "slurm_job").read_text().strip() for job in jobs)


def search(folder: Path, *words: str) -> SearchSweep:
    words = ("sweep=learning_rate", f"sweep.output={folder}", "sweep.engine=local", "sweep.search.trials=5", *words)
    return SearchSweep(read_sweep(words, CONF), STAND_IN, CONF)


def test_a_search_is_gone_on_with_and_no_trial_counts_twice(tmp_path, monkeypatch, capsys):
    optuna = pytest.importorskip("optuna")
    first = search(tmp_path)
    tell = first._tell

    def killed_before_the_third_is_told(study, number, job):
        if number == 2:
            raise KeyboardInterrupt
        tell(study, number, job)

    monkeypatch.setattr(first, "_tell", killed_before_the_third_is_told)
    with pytest.raises(KeyboardInterrupt):
        first.run_search()
    assert search(tmp_path).run_search() == {f"trial{number}": "complete" for number in range(5)}
    assert search(tmp_path).run_search() == {f"trial{number}": "complete" for number in range(5)}
    for number in range(5):
        assert (tmp_path / f"trial{number}" / "finished").read_text() == "once\n"
    storage = f"sqlite:///{tmp_path / 'study.sqlite'}"
    study = optuna.load_study(study_name="learning_rate", storage=storage)
    values = {trial.number: trial.value for trial in study.trials}
    rates = {trial.number: trial.params["optimizer.lr"] for trial in study.trials}
    assert len(set(rates.values())) == 5
    # the stand-in's best validation figure, not its test figure and not its last one
    assert values == {number: pytest.approx(abs(rate - 0.003)) for number, rate in rates.items()}
    assert f"best: trial{study.best_trial.number}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def two_trials(tmp_path_factory) -> Path:
    pytest.importorskip("optuna")
    folder = tmp_path_factory.mktemp("search")
    search(folder, "model.layers=2", "sweep.search.trials=2").run_search()
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.layers=3"], "trial1 holds a run with other settings .*model.layers: 2 -> 3"),
        (["sweep.search.metric=loss", "sweep.search.maximise=true"], "search.metric: None -> loss; .*maximise: None -> True"),
        (["sweep.search.space={optimizer.weight_decay:[0.0,0.2]}"], r"space.optimizer.weight_decay: .*0.1.* -> .*0.2"),
        (["sweep.name=another"], "holds the search learning_rate, this one is another"),
    ],
)
def test_a_search_of_other_settings_is_not_gone_on_with(two_trials, words, said):
    with pytest.raises(ConfigError, match=said):
        search(two_trials, "model.layers=2", "sweep.search.trials=3", *words).run_search()
    assert not (two_trials / "trial2").exists()


def test_a_trial_that_failed_before_it_was_told_is_not_run_again(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    words = ("seed=13", "sweep.search.trials=1")
    first = search(tmp_path, *words)
    monkeypatch.setattr(first, "_tell", lambda *told: None)
    first.run_search()
    assert search(tmp_path, *words).run_search() == {"trial0": "failed"}
    assert len((tmp_path / "trial0" / "starts").read_text().splitlines()) == 1
    [study] = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'study.sqlite'}")
    assert study.n_trials == 1
    with pytest.raises(ConfigError, match=r"raise sweep\.search\.trials"):
        search(tmp_path, *words, "sweep.retry=[failed]")


def test_a_search_is_shown_without_a_run(tmp_path):
    pytest.importorskip("optuna")
    shown = search(tmp_path / "none", "seed=3").shown()
    assert shown.startswith("5 trials of: python train.py experiment=demo test=false seed=3\n  optimizer.lr: {'low'")
    assert not (tmp_path / "none").exists()


def test_the_table_shows_states_steps_and_figures(tmp_path):
    from rich.console import Console

    settings, jobs = settings_and_jobs(tmp_path, "sweep.engine=local", "seed=1,13", "trainer.max_steps=7")
    Sweep(settings, STAND_IN).run(jobs)
    table = LiveTable("night")
    for job, status in zip(jobs, ("complete", "failed"), strict=True):
        table.add(job, None)
        table.ended(job, Outcome(status, 0))
    console = Console(width=120, file=io.StringIO())
    console.print(table.drawn())
    shown = console.file.getvalue()
    assert "1 complete, 1 failed" in shown and "3/7" in shown and "bits per byte 2 (test)" in shown


def test_a_job_sees_no_rank_of_the_driver_but_the_settings_of_its_machine():
    from longspan.sweeps.process import environment

    ranks = {"RANK": "1", "SLURM_JOB_ID": "7", "OMPI_COMM_WORLD_RANK": "1", "OMPI_MCA_orte_hnp_uri": "x", "PMIX_RANK": "1"}
    kept = {"PATH": "/bin", "OMPI_MCA_plm_rsh_agent": "false"}
    found = environment({**ranks, **kept}, "3")
    assert not ranks.keys() & found.keys() and kept.items() <= found.items()
    assert found["CUDA_VISIBLE_DEVICES"] == "3"


def test_the_end_says_why_a_run_failed_and_reports_only_what_there_is(tmp_path, capsys):
    assert main([f"sweep.output={tmp_path / 'one'}", "seed=1,13"], train=STAND_IN) == 1
    *_, failed, end = capsys.readouterr().out.strip().splitlines()
    log = tmp_path / "one" / "seed13" / "log.txt"
    last = [line for line in log.read_text().splitlines() if line.strip()][-1]
    assert failed == f"seed13: failed: {last} ({log})"
    assert end.startswith("1 of 2 runs complete. Next: longspan-report")
    assert main([f"sweep.output={tmp_path / 'none'}", "seed=13"], train=STAND_IN) == 1
    assert capsys.readouterr().out.strip().endswith("0 of 1 runs complete.")
