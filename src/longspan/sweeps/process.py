"""One job as a process of its own: its environment, its log, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from longspan.config.errors import InUseError, RecordError
from longspan.records import Record
from longspan.records.lock import note
from longspan.records.schema import Status
from longspan.sweeps.folders import describe_job, locked, status_of
from longspan.sweeps.plan import Job

# of whoever started the driver: a job that saw them would think itself a rank of that
FOREIGN = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PL_GLOBAL_SEED",
)
# Of Open MPI only what names a rank or its launcher: machines set other OMPI_MCA_ keys, without which MPI may not start at all,
# and Lightning asks MPI, where it is installed, whether it was started by it.
FOREIGN_PREFIXES = (
    "SLURM_",
    "TORCHELASTIC_",
    "PMI_",
    "PMIX_",
    "OMPI_COMM_WORLD_",
    "OMPI_UNIVERSE_",
    "OMPI_MCA_ess_",
    "OMPI_MCA_orte_",
    "OMPI_MCA_prte_",
    "SUBMITIT_",
)
LOG_TAIL = 3000


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the status in its record (or "not started"), and the exit code."""

    status: str
    code: int


def run_job(job: Job, train: Path, devices: str | None, environ: Mapping[str, str], stop: Path | None = None) -> Outcome:
    """Starts the job, or takes it up again from its checkpoint, and waits for its end.

    Args:
        train: the script to start.
        devices: CUDA_VISIBLE_DEVICES of the run; None leaves it as it is.
        environ: of the driver.
        stop: a file that keeps the job from starting while it is there.
    """
    if stop is not None and stop.exists():
        return Outcome("not started", 0)
    try:
        with locked(job.folder) as handle:
            if status_of(job) == "complete":  # it ended after the driver had looked, or the cluster queued it once more
                return Outcome("complete", 0)
            describe_job(job, train)
            code = _run_once(job.command(train), job.folder, environment(environ, devices), handle)
            status = status_of(job)
            if status in ("complete", "failed", "out_of_memory") or _was_asked(code):
                return Outcome(status or "interrupted", code)
            ended: Status = "interrupted" if _signal(code) == signal.SIGKILL else "failed"
            _record_end(job, train, code, ended)
            return Outcome(ended, code)
    except InUseError:
        return Outcome("running elsewhere", 0)


def environment(environ: Mapping[str, str], devices: str | None) -> dict[str, str]:
    """The driver's environment without the variables of its own ranks, and with the devices of this job alone."""
    clean = {name: value for name, value in environ.items() if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)}
    if devices is not None:
        clean["CUDA_VISIBLE_DEVICES"] = devices
    return clean


def _run_once(command: Sequence[str], folder: Path, environ: Mapping[str, str], handle: int) -> int:
    with (folder / "log.txt").open("ab") as log:
        log.write(f"\n== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
        log.flush()
        # a session of its own: Ctrl-C at the terminal reaches the driver alone, which then asks each run once
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(environ),
            pass_fds=[handle],
            start_new_session=True,
        )
        note(handle, process.pid)
        code = process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # ranks that outlived a killed first one
    return code


def _signal(code: int) -> int | None:
    """The signal that an exit code stands for, also in a shell's encoding (128 + number)."""
    number = -code if code < 0 else code - 128
    return number if number in set(signal.Signals) else None


def _was_asked(code: int) -> bool:
    """Ended by a signal that asks for it, and at which a run saves a checkpoint."""
    return _signal(code) in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def _record_end(job: Job, train: Path, code: int, status: Status) -> None:
    """A run that ended before it could write its record, or without saying so there, is recorded all the same."""
    log = (job.folder / "log.txt").read_bytes()[-LOG_TAIL:].decode(errors="replace")
    number = _signal(code)
    if number is None:
        cause = f"it ended with exit code {code} and no record of its end"
    elif number == signal.SIGKILL:
        cause = "it was killed by SIGKILL, as the kernel does where memory is short, or a scheduler"
    else:
        cause = f"it died of {signal.Signals(number).name} ({signal.strsignal(number)})"
    error = f"{cause}; the log ends:\n{log}"
    path = job.folder / "record.json"
    try:
        record = Record.load(path).model_copy(update={"status": status, "error": error})
    except RecordError:
        record = Record(
            status=status,
            error=error,
            config=job.config,
            command=" ".join(job.command(train)[1:]),
            seed=job.config.get("seed"),
            started=datetime.now(UTC),
            variant=job.config.get("attention_name"),
            name=job.config.get("name"),
            group=job.group,
        )
    record.save(path)
