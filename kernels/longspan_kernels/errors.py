"""The errors that kernels raise."""

from __future__ import annotations


class KernelError(ValueError):
    """An argument of a kernel call that cannot work; the message names it, its value and what would be right."""


class BackendError(ValueError):
    """The backend asked for cannot serve this call; the message says why and what would."""
