"""The errors that kernels raise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class KernelError(ValueError):
    """An argument of a kernel call that cannot work; the message names it, its value and what would be right."""


class BackendError(ValueError):
    """The backend asked for cannot serve this call; the message says why and what would."""


def check_lengths(lengths: Tensor | None, batch: int) -> None:
    """Raises KernelError where lengths are not one number a sequence: a kernel would read beyond them."""
    if lengths is not None and lengths.shape != (batch,):
        raise KernelError(f"lengths has shape {tuple(lengths.shape)}; give {(batch,)}")
