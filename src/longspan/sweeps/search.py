"""A search by Optuna over config keys: trials are runs like those of a grid, kept over kills of the driver."""

from __future__ import annotations

import shlex
import warnings
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longspan.config.errors import ConfigError
from longspan.config.written import written
from longspan.records import Record
from longspan.sweeps.drive import Sweep
from longspan.sweeps.engines import INSTALL
from longspan.sweeps.folders import status_of
from longspan.sweeps.plan import Job, job_for
from longspan.sweeps.process import Outcome
from longspan.sweeps.settings import Search, SweepSettings

ENDED = ("complete", "failed", "out_of_memory")
# what trials are judged by, kept in the study
JUDGED_BY = "longspan_judged_by"


class SearchSweep(Sweep):
    """Asks Optuna for trials, as many at a time as there are slots, and tells it how each ended.

    The study is an SQLite file in the sweep's folder. A trial that was under way when the driver was killed is taken up
    again in its folder; one whose run had finished is reported to Optuna and not run again.
    """

    def __init__(self, settings: SweepSettings, train: Path, conf: Path) -> None:
        super().__init__(settings, train)
        if settings.retry:
            raise ConfigError("sweep.retry with sweep.search: Optuna's trials end once; raise sweep.search.trials for others")
        if find_spec("optuna") is None:
            raise ConfigError(f"sweep.search needs Optuna: {INSTALL}")
        assert settings.search is not None
        self.search: Search = settings.search
        self.conf = conf

    def run_search(self) -> dict[str, str]:
        """Runs what is left of the trials; every trial's status at the end, by name."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        states = optuna.trial.TrialState
        first = self.job_of(self._middle(), "check")  # a wrong key is found before the first run
        with self.held():
            storage = f"sqlite:///{(self.folder / 'study.sqlite').resolve()}"
            study = self._study(optuna, storage)
            self._check_same_search(optuna, study)
            open_trials = study.get_trials(states=(states.RUNNING,))
            begun = [(trial, self.job_of(trial.params, f"trial{trial.number}")) for trial in open_trials if trial.params]
            self.free([job for _, job in begun])
            done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
            self.table.say(f"search of {self.search.trials} trials in {self.folder}, {len(done)} ended already")
            with self.engine([first]) as engine:
                running: dict[Future[Outcome], Job] = {}
                trials: dict[str, Any] = {}
                for trial, job in begun:
                    trials[job.name] = trial.number
                    self.table.add(job, status_of(job))
                    if status_of(job) in ENDED:
                        self._tell(study, trial.number, job)
                    else:
                        running[self.submit(engine, job)] = job
                while not self.stopping:
                    while len(running) < engine.at_once and self._count(study) < self.search.trials and not self.stopping:
                        trial = study.ask(self._distributions(optuna))
                        job = self.job_of(trial.params, f"trial{trial.number}")
                        trials[job.name] = trial.number
                        self.table.add(job, None)
                        running[self.submit(engine, job)] = job
                    if not running:
                        break
                    for future in self.wait(running):
                        job = running.pop(future)
                        if self.goes_on(job, self.finish(job, future)):
                            running[self.submit(engine, job)] = job
                        elif not self.stopping:
                            self._tell(study, trials[job.name], job)
                self.wind_up(engine, running)
            self._say_best(study)
        return {f"trial{trial.number}": _words(trial.state) for trial in study.get_trials(deepcopy=False)}

    def shown(self) -> str:
        """What would be run: the values of a trial are only known when it begins."""
        job = self.job_of(self._middle(), "trial0")
        sought = [f"{key}={written(value)}" for key, value in self._middle().items()]
        words = shlex.join(["python", "train.py", *(word for word in job.overrides if word not in sought)])
        return "\n".join([f"{self.search.trials} trials of: {words}", *(f"  {k}: {v}" for k, v in self.search.space.items())])

    def job_of(self, values: dict[str, Any], name: str) -> Job:
        fixed = {key: choices[0] for key, choices in self.settings.grid.items()}
        return job_for(self.settings, {**fixed, **values}, self.conf, name)

    def _study(self, optuna: Any, storage: str) -> Any:
        # another seed after each start: the same one would suggest again what has been tried
        known = optuna.study.get_all_study_names(storage)
        if known and str(self.settings.name) not in known:
            raise ConfigError(
                f"{self.folder} holds the search {known[0]}, this one is {self.settings.name}: give it another folder with "
                "sweep.output=FOLDER"
            )
        count = len(optuna.load_study(study_name=known[0], storage=storage).trials) if known else 0
        with warnings.catch_warnings():  # constant_liar is what trials at once want, and experimental for years
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=self.search.seed + count, constant_liar=True)
        maximise = self.search.metric is not None and self.search.maximise
        return optuna.create_study(
            study_name=str(self.settings.name),
            storage=storage,
            sampler=sampler,
            direction="maximize" if maximise else "minimize",
            load_if_exists=True,
        )

    def _check_same_search(self, optuna: Any, study: Any) -> None:
        """Trials of other settings, or judged by another figure, would be compared with each other as if they were alike.

        Raises:
            ConfigError: the folder's study is of another search.
        """
        judged_by = {"metric": self.search.metric, "maximise": self.search.maximise}
        before = study.user_attrs.get(JUDGED_BY, judged_by)
        changed = [f"sweep.search.{key}: {before[key]} -> {now}" for key, now in judged_by.items() if before[key] != now]
        study.set_user_attr(JUDGED_BY, before)
        space = self._distributions(optuna)
        for trial in reversed(study.get_trials(deepcopy=False)):
            for key, distribution in trial.distributions.items():
                try:
                    optuna.distributions.check_distribution_compatibility(distribution, space.get(key, distribution))
                except ValueError:
                    changed.append(f"sweep.search.space.{key}: {distribution} -> {space[key]}")
            job = self.job_of(trial.params, f"trial{trial.number}") if trial.params else None
            if job is not None and status_of(job) is not None:  # it refuses a record of other settings
                break  # one stands for all: each start has checked the one before it
        if changed:
            raise ConfigError(
                f"{self.folder} holds a search that began otherwise ({'; '.join(changed)}): give this one another folder with "
                "sweep.output=FOLDER"
            )

    def _count(self, study: Any) -> int:
        return len(study.get_trials(deepcopy=False))

    def _distributions(self, optuna: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, space in self.search.space.items():
            if isinstance(space, list):
                found[key] = optuna.distributions.CategoricalDistribution(space)
                continue
            low, high, log, step = space["low"], space["high"], bool(space.get("log")), space.get("step")
            whole = isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int))
            if whole:
                found[key] = optuna.distributions.IntDistribution(low, high, log=log, step=step or 1)
            else:
                found[key] = optuna.distributions.FloatDistribution(float(low), float(high), log=log, step=step)
        return found

    def _middle(self) -> dict[str, Any]:
        return {key: space[0] if isinstance(space, list) else space["low"] for key, space in self.search.space.items()}

    def _tell(self, study: Any, number: int, job: Job) -> None:
        import optuna

        value = self.value_of(job)
        if value is None:
            study.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
        else:
            study.tell(number, value, skip_if_finished=True)

    def value_of(self, job: Job) -> float | None:
        """The best validation figure of a complete run, turned so that it fits the study's direction."""
        if status_of(job) != "complete":
            return None
        record = Record.load(job.folder)
        metric = self.search.metric or record.primary_metric
        values = [value for _, value in record.curves.get(f"val/{metric}", []) if value is not None]
        if not values:
            raise ConfigError(f"{job.folder} has no val/{metric}; name a metric that the task validates in sweep.search.metric")
        if self.search.metric is not None:
            return max(values) if self.search.maximise else min(values)
        higher = record.accuracy[str(metric)].higher_is_better
        best = max(values) if higher else min(values)
        return -best if higher else best  # the study minimises where no metric was named

    def _say_best(self, study: Any) -> None:
        import optuna

        if study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            best = study.best_trial
            job = self.job_of(best.params, f"trial{best.number}")
            self.table.say(f"best: {job.name}, {' '.join(job.overrides)}, in {job.folder}")


def _words(state: Any) -> str:
    return {"COMPLETE": "complete", "FAIL": "failed", "RUNNING": "interrupted"}.get(state.name, state.name.lower())
