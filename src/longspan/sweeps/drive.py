"""Drives a sweep: what is finished stays, what is half finished goes on, the rest is run; one driver at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from longspan.config.errors import ConfigError, InUseError
from longspan.records.atomic import write_text
from longspan.records.lock import note
from longspan.sweeps.engines import QUEUED, Engine, Slurm, engine_for
from longspan.sweeps.folders import ask_to_stop, locked, status_of, wait_until_free
from longspan.sweeps.plan import Job
from longspan.sweeps.process import Outcome
from longspan.sweeps.settings import SweepSettings
from longspan.sweeps.table import ProgressTable, progress_table

# seconds that a run of an earlier, killed driver gets to save its checkpoint
PATIENCE = 300.0
REFRESH = 1.0


class Sweep:
    """One invocation of a sweep over jobs that are known beforehand, or that `search` asks for as it goes.

    Args:
        train: the script that a job starts.
        table: where progress is shown; by default a live table, or lines where the output is no terminal.
    """

    def __init__(self, settings: SweepSettings, train: Path, table: ProgressTable | None = None) -> None:
        self.settings, self.train = settings, train
        self.folder = Path(str(settings.output))
        self.table = table or progress_table(str(settings.name))
        self._stop_file = self.folder / ".stop"
        self._signalled = 0
        self._starts: Counter[str] = Counter()

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Every job's status at the end, by name; those of earlier starts included."""
        with self.held():
            statuses = {job.name: status_of(job) for job in jobs}
            due = [job for job in jobs if self.is_due(statuses[job.name])]
            self._announce(jobs, statuses, due)
            for job in jobs:
                self.table.add(job, statuses[job.name])
            self.free(jobs)
            if due:
                self._run_all(due)
            statuses = {job.name: status_of(job) for job in jobs}
        return {name: status or "not run" for name, status in statuses.items()}

    def is_due(self, status: str | None) -> bool:
        return status in (None, "interrupted", *self.settings.retry)

    def _run_all(self, due: Sequence[Job]) -> None:
        with self.engine(due) as engine:
            running = {self.submit(engine, job): job for job in due}
            while running and not self.stopping:
                for future in self.wait(running):
                    job = running.pop(future)
                    if self.goes_on(job, self.finish(job, future)):
                        running[self.submit(engine, job)] = job
            self.wind_up(engine, running)

    @property
    def stopping(self) -> bool:
        """Whether Ctrl-C or SIGTERM has asked for the end."""
        return self._signalled > 0

    def goes_on(self, job: Job, outcome: Outcome) -> bool:
        """Whether a run that was killed is to be taken up again at once."""
        ended = outcome.status in ("complete", "failed", "out_of_memory")
        return not ended and not self.stopping and self._starts[job.name] < self.settings.attempts

    # -- parts that a search uses too ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The sweep's folder as this driver's own.

        Raises:
            ConfigError: another driver runs the same sweep.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder) as handle:
                note(handle, os.getpid())
                self._stop_file.unlink(missing_ok=True)
                yield
        except InUseError as error:
            raise ConfigError(f"this sweep is being run: {error}. Wait for it, or give another sweep.output=FOLDER") from None

    @contextlib.contextmanager
    def engine(self, jobs: Sequence[Job]) -> Iterator[Engine]:
        """The engine, closed at the end; Ctrl-C and SIGTERM ask the running jobs to save and stop."""
        engine = engine_for(self.settings, jobs, self.train, self._stop_file)
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM) if main}
        try:
            with self.table:
                yield engine
        finally:
            engine.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def free(self, jobs: Sequence[Job]) -> None:
        """Stops what an earlier start has left running; SLURM's jobs stay, their engine finds and awaits them."""
        queued = self.settings.engine == "slurm"
        folders = [job.folder for job in jobs if not (queued and (job.folder / QUEUED).exists())]
        wait_until_free(folders, PATIENCE, self.table.say)

    def submit(self, engine: Engine, job: Job) -> Future[Outcome]:
        self._starts[job.name] += 1
        return engine.submit(job)

    def wait(self, running: dict[Future[Outcome], Job]) -> set[Future[Outcome]]:
        """Those that are done, at least once a second none."""
        done, _ = wait(running, timeout=REFRESH, return_when=FIRST_COMPLETED)
        self.table.refresh()
        return done

    def finish(self, job: Job, future: Future[Outcome]) -> Outcome:
        try:
            outcome = future.result()
        except Exception as error:  # of the engine; the job's own failures are in its record
            self.table.say(f"{job.name}: {error}")
            outcome = Outcome("interrupted", -1)
        self.table.ended(job, outcome)
        return outcome

    def wind_up(self, engine: Engine, running: dict[Future[Outcome], Job]) -> None:
        """After a signal: no other job starts, those that run save and end."""
        if not running:
            return
        self.table.say("stopping: each run saves a checkpoint; the same command goes on (again Ctrl-C: at once)")
        asked: set[str] = set()
        while running:
            for job in running.values():
                number = signal.SIGKILL if self._signalled > 1 else signal.SIGTERM
                key = f"{job.name} {number}"
                if not isinstance(engine, Slurm) and key not in asked and ask_to_stop(job.folder, number):
                    asked.add(key)
            for future in self.wait(running):
                self.finish(running.pop(future), future)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled += 1
        self._stop_file.touch()

    def _announce(self, jobs: Sequence[Job], statuses: dict[str, str | None], due: Sequence[Job]) -> None:
        done = sum(status == "complete" for status in statuses.values())
        half = sum(status == "interrupted" for status in statuses.values())
        left = [name for name, status in statuses.items() if status in ("failed", "out_of_memory") and not self.is_due(status)]
        parts = [f"{len(jobs)} runs in {self.folder}"]
        parts += [f"{done} complete already"] if done else []
        parts += [f"{half} to go on with"] if half else []
        parts += (
            [f"{len(left)} failed, not run again ({left[0]}, ...; sweep.retry=[failed,out_of_memory] does)"] if left else []
        )
        self.table.say(", ".join(parts))
        self.write_plan(jobs)

    def write_plan(self, jobs: Sequence[Job]) -> None:
        """`sweep.json`: what the sweep is made of."""
        content = {
            "name": self.settings.name,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "runs": {job.name: list(job.overrides) for job in jobs},
        }
        write_text(self.folder / "sweep.json", json.dumps(content, indent=2) + "\n")
