"""Whether Triton kernels can run here; asked before Triton is imported."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

INSTALLED = find_spec("triton") is not None
OLDEST = (8, 0)  # Ampere


def triton_runs_on(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device, or None where they can."""
    if not INSTALLED:
        return "triton is not installed (it has wheels for Linux only)"
    if os.environ.get("TRITON_INTERPRET") == "1" and device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"Triton kernels need a CUDA device, not {device.type} (TRITON_INTERPRET=1 runs them on the CPU, slowly)"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "Triton kernels need compute capability 8.0 (Ampere) or newer"
    return None
