"""Peak memory, in MiB, with a unit that says which memory is meant."""

from __future__ import annotations

import sys
from typing import Any

DEVICE_UNIT = "MiB allocated on the device"
PROCESS_UNIT = "MiB resident in the process"


def reset_peak(device: Any) -> None:
    """Start a new peak where the device keeps one; a process's resident peak cannot be reset."""
    if getattr(device, "type", None) == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: Any) -> tuple[float | None, str]:
    """(MiB, unit): what torch allocated on a GPU, else the most the whole process ever held in RAM.

    The second counts the interpreter, the libraries and the data too: compare it only between runs of one machine.
    """
    if getattr(device, "type", None) == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20, DEVICE_UNIT
    try:
        import resource
    except ImportError:  # Windows
        return None, PROCESS_UNIT
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10, PROCESS_UNIT
