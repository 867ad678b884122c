"""Describes what a run ran on: commit, installed versions, hardware. Nothing here names a person or a host."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "lightning", "hydra-core", "numpy", "torchmetrics", "datasets", "wandb")


def git_commit(folder: str | Path | None = None) -> tuple[str | None, bool | None]:
    """Commit of the repository around `folder` and whether tracked files differ from it; (None, None) outside one.

    `folder` is by default that of the script being run, then the current one.
    """
    script = Path(sys.argv[0]).resolve().parent if sys.argv and sys.argv[0] not in ("", "-c", "-m") else None
    for place in [folder] if folder is not None else [script, Path.cwd()]:
        if place is None or not Path(place).is_dir():
            continue
        commit = _git(place, "rev-parse", "HEAD")
        if commit:
            changes = _git(place, "status", "--porcelain", "--untracked-files=no")
            return commit, None if changes is None else bool(changes)
    return None, None


def _git(folder: str | Path, *arguments: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()
    return None


def versions(*others: str) -> dict[str, str | None]:
    """Python, Longspan and the packages that decide a result, `others` too; None for one that is not installed."""
    from longspan import __version__

    found: dict[str, str | None] = {"python": platform.python_version(), "longspan": __version__}
    for name in (*PACKAGES, *others):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    torch = sys.modules.get("torch")  # never worth an import of its own
    found["cuda"] = getattr(getattr(torch, "version", None), "cuda", None)
    found["platform"] = platform.platform(terse=True)
    return found


def hardware() -> dict[str, Any]:
    """{cpu, cores, memory_gib, gpus: [names], gpu_memory_gib: [...], gpu_count}."""
    found: dict[str, Any] = {"cpu": _cpu_model(), "cores": _cores(), "memory_gib": _memory_gib()}
    gpus: list[str] = []
    sizes: list[float] = []
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append(properties.name)
            sizes.append(round(properties.total_memory / 2**30, 1))
    return {**found, "gpus": gpus, "gpu_memory_gib": sizes, "gpu_count": len(gpus)}


def command_line() -> str:
    """A line that repeats this run: what was typed, or for a job of a sweep its own share of it."""
    arguments = sys.argv[1:]
    config = getattr(sys.modules.get("hydra.core.hydra_config"), "HydraConfig", None)  # only where Hydra runs at all
    if config is not None and config.initialized() and "MULTIRUN" in str(config.get().mode):
        own_folder = [word for word in config.get().overrides.hydra if word.startswith("hydra.searchpath=")]
        arguments = [*own_folder, *config.get().overrides.task]
    if any(word.startswith("hydra.searchpath=") for word in arguments):
        from longspan.config.own_folder import as_typed  # only now: it loads Hydra

        arguments = as_typed(arguments)
    script = sys.argv[0] if sys.argv else ""
    if os.path.basename(script).startswith("ipykernel"):
        return ""  # a notebook: what started it repeats nothing
    if (installed := Path(script).stem.replace("_", "-")).startswith("longspan-"):
        return shlex.join([installed, *arguments])
    if os.path.isabs(script):
        near = os.path.relpath(script)
        script = _in_its_repository(Path(script)) if near.startswith("..") else near
    return shlex.join(["python", *([script] if script else []), *arguments])


def _in_its_repository(script: Path) -> str:
    """As one who stands at the top of the repository would call it."""
    root = next((folder for folder in script.parents if (folder / ".git").exists()), script.parent)
    return str(script.relative_to(root))


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores this process may use, which under a scheduler is fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
