"""Launches kept by all that they depend on, so that a step looks them up rather than working them out again."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from longspan_kernels.launch.launcher import Launch, Plan


def planned(kernel: Any, programs: int, launch: Launch, *tensors: Tensor | None, **numbers: Any) -> None:
    """Launches `kernel` on `tensors`, its first arguments; `numbers` are all others, by name."""
    kinds = tuple(None if x is None else x.dtype for x in tensors)
    device = next(x.device for x in tensors if x is not None)
    _kept(kernel, programs, launch, device, kinds, tuple(numbers.items()))(*tensors)


@lru_cache(maxsize=4096)
def _kept(
    kernel: Any, programs: int, launch: Launch, device: torch.device, kinds: tuple, numbers: tuple[tuple[str, Any], ...]
) -> Plan:  # fmt: skip
    return Plan(kernel, programs, dict(numbers), launch)
