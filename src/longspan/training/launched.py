"""Runs whose processes something else starts: torchrun, or srun on a SLURM cluster.

Each process composes its own config, and the default output folder has the time in it: without a word from here every
rank would write to a folder of its own, and a job that is started again would begin anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from longspan.config.errors import ConfigError, InUseError

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def launcher_overrides(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """What train.py's command line gets beside what was typed: one folder for all ranks, and going on after a restart.

    Raises:
        ConfigError: torchrun over several hosts without a folder that they share.
    """
    if any(word in ("-m", "--multirun") for word in words):
        return []
    folder, rank = None, 0
    if "TORCHELASTIC_RUN_ID" in environ:
        folder, rank = _torchrun_folder(environ), int(environ.get("RANK", 0))
        if folder is None and not _given(words, "hydra.run.dir"):
            raise ConfigError(
                "torchrun over several hosts: give them one folder to write to, e.g. hydra.run.dir=outputs/my-run, "
                "or torchrun a name of its own with --rdzv-id"
            )
    elif on_slurm(environ):
        step = environ.get("SLURM_STEP_ID", "0")  # a script may call srun several times
        name = slurm_job(environ) + (f".{step}" if step not in ("", "0") else "")
        folder, rank = f"outputs/slurm/{name}", int(environ.get("SLURM_PROCID", 0))
    elif "LOCAL_RANK" in environ:
        return []  # started by Lightning, which hands the folder on
    else:
        return []
    added = [] if _given(words, "hydra.run.dir") else [f"hydra.run.dir={folder}"]
    if not _given(words, "ckpt_path"):
        added.append("ckpt_path=auto")  # finds nothing at the first start
    if rank:
        added += ["hydra.output_subdir=null", f"hydra.job.name=train_rank{rank}"]
    return added


def check_world(devices_here: int, num_nodes: int, environ: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError where torchrun or srun started more or fewer processes than the config has devices.

    They would train apart from each other, or wait for ever.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        who, local, world = "torchrun", environ.get("LOCAL_WORLD_SIZE"), environ.get("WORLD_SIZE")
    elif on_slurm(environ) and "SLURM_PROCID" in environ:
        who, local, world = "srun", environ.get("SLURM_NTASKS_PER_NODE"), environ.get("SLURM_NTASKS")
    else:
        return
    if local is not None and local.isdigit() and int(local) != devices_here:
        raise ConfigError(
            f"{who} started {local} process(es) on this host, trainer.devices means {devices_here}: "
            f"set trainer.devices={local} (and trainer.strategy=ddp or fsdp)"
        )
    if world is not None and world.isdigit() and int(world) != devices_here * num_nodes:
        raise ConfigError(
            f"{who} started {world} processes, trainer.devices={devices_here} on trainer.num_nodes={num_nodes} host(s) "
            f"makes {devices_here * num_nodes}: set trainer.num_nodes={max(1, int(world) // devices_here)}"
        )


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """The run's folder as this run's own; of several ranks the first holds it for all.

    Raises:
        ConfigError: another run writes there.
    """
    from lightning.pytorch.utilities import rank_zero_only  # seconds to load, and train.py asks this module first

    from longspan.records.lock import described, held_folder

    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held_folder(folder))
        except InUseError as error:
            raise ConfigError(
                f"hydra.run.dir={folder}: another run writes there, {described(error.holder)}. Wait for it or end it, or give "
                "this run a folder of its own"
            ) from None
        yield


def end_with_launcher(environ: Mapping[str, str] = os.environ) -> None:
    """Has the kernel end this rank when the process that started it dies: it would wait for the others for ever.

    Lightning's launcher is a rank itself, without which no other can go on; torchrun's is none, so its ranks are asked to
    save first. Only on Linux.
    """
    if "LOCAL_RANK" not in environ or on_slurm(environ) or not sys.platform.startswith("linux"):
        return
    number = signal.SIGTERM if "TORCHELASTIC_RUN_ID" in environ else signal.SIGKILL
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def on_slurm(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a process of a batch job; a shell inside an allocation is not."""
    return {"SLURM_JOB_ID", "SLURM_NTASKS"} <= environ.keys() and environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def slurm_job(environ: Mapping[str, str] = os.environ) -> str:
    """The job's id, an array's task by its own: ``123`` or ``120_3``."""
    if "SLURM_ARRAY_JOB_ID" in environ and "SLURM_ARRAY_TASK_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def requeue(environ: Mapping[str, str] = os.environ) -> str | None:
    """Puts this SLURM job back in the queue, unless someone cancelled it; says what was done, None outside SLURM.

    `sbatch --no-requeue` forbids it.
    """
    if not on_slurm(environ):
        return None
    job = slurm_job(environ)
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
        return f"SLURM job {job!r} is not a job's number; not requeued"
    try:
        shown = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format=%T"], capture_output=True, text=True, timeout=30, check=False
        )
        if "CANCELLED" in shown.stdout:
            return f"SLURM job {job} was cancelled; not requeued"
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM job {job} could not be requeued: {error}"
    if done.returncode:
        return f"SLURM job {job} could not be requeued: {done.stderr.strip() or done.returncode}"
    return f"SLURM job {job} is requeued"


def _given(words: Sequence[str], key: str) -> bool:
    return any(word.lstrip("+").startswith(f"{key}=") for word in words)


def _torchrun_folder(environ: Mapping[str, str]) -> str | None:
    """The same for all ranks and all restarts of one torchrun, another for the next."""
    run = environ["TORCHELASTIC_RUN_ID"]
    if run != "none":
        return f"outputs/torchrun/{re.sub(r'[^A-Za-z0-9._-]', '_', run)}"
    if environ.get("WORLD_SIZE") != environ.get("LOCAL_WORLD_SIZE"):
        return None
    return f"outputs/torchrun/{_process_name(os.getppid())}"


def _process_name(process: int) -> str:
    """Of a process of this host, unlike that of any other, also after a restart of the host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        started = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return f"{time.strftime('%Y-%m-%d')}-{process}"
    return f"{boot}-{started}-{process}"
