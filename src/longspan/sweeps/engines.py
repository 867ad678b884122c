"""Engines that give jobs their devices: Ray on this machine, SLURM through submitit, or one thread a device without either."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from longspan.config.errors import ConfigError
from longspan.records.atomic import write_text
from longspan.sweeps.plan import Job
from longspan.sweeps.process import Outcome, run_job
from longspan.sweeps.settings import SweepSettings

INSTALL = "pip install 'longspan[sweep]'"
# in a run's folder: the number of its SLURM job
QUEUED = "slurm_job"


class Engine(ABC):
    """Runs jobs, `at_once` of them at a time, each with its devices.

    Args:
        gpus: indices of this machine's GPUs; empty where jobs need none.
        stop: a file; while it is there, no job starts.
    """

    def __init__(self, settings: SweepSettings, gpus: Sequence[str], train: Path, stop: Path) -> None:
        self.settings, self.gpus, self.train, self.stop = settings, gpus, train, stop
        self.at_once = len(slots(gpus, settings.devices_a_job, settings.at_once))

    @abstractmethod
    def submit(self, job: Job) -> Future[Outcome]:
        """Hands a job over."""

    @abstractmethod
    def close(self) -> None:
        """Waits for what runs, and frees what the engine holds."""

    def _arguments(self, job: Job, devices: str | None) -> tuple[Any, ...]:
        return job, self.train, devices, dict(os.environ), self.stop


class Local(Engine):
    """Threads of this process that wait for their jobs; each takes a free slot."""

    def __init__(self, settings: SweepSettings, gpus: Sequence[str], train: Path, stop: Path) -> None:
        super().__init__(settings, gpus, train, stop)
        self._free: SimpleQueue[tuple[str, ...]] = SimpleQueue()
        for slot in slots(gpus, settings.devices_a_job, settings.at_once):
            self._free.put(slot)
        self._pool = ThreadPoolExecutor(max_workers=self.at_once)

    def submit(self, job: Job) -> Future[Outcome]:
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> Outcome:
        slot = self._free.get()
        try:
            return run_job(*self._arguments(job, ",".join(slot) if slot else None))
        finally:
            self._free.put(slot)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Ray(Engine):
    """Ray's scheduler on this machine: a job asks for GPUs, Ray says which."""

    def __init__(self, settings: SweepSettings, gpus: Sequence[str], train: Path, stop: Path) -> None:
        super().__init__(settings, gpus, train, stop)
        if find_spec("ray") is None:
            raise ConfigError(f"sweep.engine=ray needs Ray: {INSTALL}, or take sweep.engine=local")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        with _own_sigterm():
            ray.init(
                num_cpus=self.at_once,
                num_gpus=len(gpus),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        self._ray = ray
        self._task = ray.remote(num_cpus=1, num_gpus=settings.devices_a_job if gpus else 0, max_retries=0)(_in_ray_worker)

    def submit(self, job: Job) -> Future[Outcome]:
        reference = self._task.remote(self._arguments(job, None), bool(self.gpus))
        return reference.future()

    def close(self) -> None:
        self._ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Whoever handled SIGTERM before goes on doing so: Ray's handler would outlive the sweep."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_ray_worker(arguments: tuple[Any, ...], has_gpus: bool) -> Outcome:
    job, train, _, environ, stop = arguments
    # Ray tells its workers their GPUs in this variable; what else it sets there is not for the job
    return run_job(job, train, os.environ.get("CUDA_VISIBLE_DEVICES") if has_gpus else None, environ, stop)


class Slurm(Engine):
    """One SLURM job for each run, through submitit; the cluster decides when and where.

    A driver that comes back finds the numbers of the jobs it had submitted, and waits for those that are still there.
    """

    poll_seconds = 5.0

    def __init__(self, settings: SweepSettings, gpus: Sequence[str], train: Path, stop: Path, cluster: str = "slurm") -> None:
        super().__init__(settings, (), train, stop)
        if find_spec("submitit") is None:
            raise ConfigError(f"sweep.engine=slurm needs submitit: {INSTALL}")
        import submitit

        self.at_once = int(settings.slurm.get("array_parallelism", 256))
        self._executor = submitit.AutoExecutor(folder=Path(str(settings.output)) / ".submitit", cluster=cluster)
        parameters = {key: value for key, value in settings.slurm.items() if value is not None and key != "array_parallelism"}
        if cluster == "slurm":
            parameters.setdefault("gpus_per_node", settings.devices_a_job)
        # the automatic executor's own job class knows no cluster that could be asked
        self._known_as = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[cluster]
        self._executor.update_parameters(name=str(settings.name), nodes=1, tasks_per_node=1, **parameters)
        self._pool = ThreadPoolExecutor(max_workers=self.at_once)

    def submit(self, job: Job) -> Future[Outcome]:
        kept = job.folder / QUEUED
        submitted = self._known(kept)
        if submitted is None:
            submitted = self._executor.submit(SlurmCall(self._arguments(job, None)))
            write_text(kept, f"{submitted.job_id}\n")
        return self._pool.submit(self._wait, submitted)

    def _known(self, kept: Path) -> Any:
        """The job of an earlier start, where it is still in the queue or running."""
        if not kept.exists():
            return None
        job = self._known_as(folder=self._executor.folder, job_id=kept.read_text().strip())
        return None if job.done() else job

    def _wait(self, submitted: Any) -> Outcome:
        while not submitted.done():
            if self.stop.exists():
                return Outcome("left in the queue", 0)
            time.sleep(self.poll_seconds)
        try:
            return submitted.result()
        except Exception:  # the job was cancelled or its node was lost: the record says how far it came
            return Outcome("interrupted", -1)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class SlurmCall:
    """What runs on the cluster's node; submitted again with the same arguments when the job is preempted."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __call__(self) -> Outcome:
        job, train = self.arguments[:2]
        # the node's own environment, where SLURM has put the devices
        return run_job(job, train, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ)

    def checkpoint(self) -> Any:
        """submitit's hook on a warning signal: the run saves and stops, the job is queued again."""
        import submitit

        from longspan.sweeps.folders import wait_until_free

        with contextlib.suppress(Exception):
            wait_until_free([self.arguments[0].folder], patience=60)
        return submitit.helpers.DelayedSubmission(self)


def engine_for(settings: SweepSettings, jobs: Sequence[Job], train: Path, stop: Path) -> Engine:
    """The engine that the settings name, or for `auto` Ray where it is installed and GPUs are shared out.

    Raises:
        ConfigError: what the engine needs is not there.
    """
    if settings.engine == "slurm":
        return Slurm(settings, (), train, stop)
    gpus = gpus_of(settings, jobs)
    if settings.engine == "ray" or (settings.engine == "auto" and len(gpus) > 1 and find_spec("ray") is not None):
        return Ray(settings, gpus, train, stop)
    return Local(settings, gpus, train, stop)


def gpus_of(settings: SweepSettings, jobs: Sequence[Job]) -> list[str]:
    """The GPUs to share out: those named, or all that are visible where the jobs run on GPUs."""
    if settings.gpus != "auto":
        named = settings.gpus if isinstance(settings.gpus, list) else str(settings.gpus).split(",")
        return [str(gpu).strip() for gpu in named if str(gpu).strip()]
    if not any(str(job.config["trainer"].get("accelerator")) in ("gpu", "cuda") for job in jobs):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def slots(gpus: Sequence[str], devices_a_job: int, at_once: int) -> list[tuple[str, ...]]:
    """The devices of each job that can run at the same time; empty tuples where no device is assigned.

    Raises:
        ConfigError: fewer devices than a job takes.
    """
    if not gpus:
        return [()] * at_once
    if devices_a_job > len(gpus):
        raise ConfigError(
            f"sweep.devices_a_job={devices_a_job} with sweep.gpus=[{','.join(gpus)}]: give 1 to {len(gpus)}, or more GPUs"
        )
    return [tuple(gpus[start : start + devices_a_job]) for start in range(0, len(gpus) - devices_a_job + 1, devices_a_job)]
