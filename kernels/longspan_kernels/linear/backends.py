"""Chooses the backend of a call of linear attention, and says why another cannot serve it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from longspan_kernels.block_sparse.backends import triton_refuses
from longspan_kernels.errors import BackendError
from longspan_kernels.launch.launcher import capability_of

BACKENDS = ("auto", "triton", "chunked", "reference", "fla")


def choose_backend(backend: str, q: Tensor, *, special: bool, decays: bool, refused: str | None = None) -> str:
    """Resolves "auto", and refuses what a backend cannot do; `special` calls have lengths or segments.

    `refused` says why an op has no Triton kernels for the call, None where it has.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    reason = triton_refuses(q) or refused
    if backend == "auto":
        return "chunked" if reason else "triton"
    if backend == "triton" and reason:
        raise BackendError(f'backend="triton" cannot serve this call: {reason}; use backend="chunked" (or "auto")')
    if backend == "fla":
        reason = fla_refuses(q, special, decays)
        if reason:
            raise BackendError(f'backend="fla" cannot serve this call: {reason}; use backend="auto"')
    return backend


def delta_refuses(q: Tensor, v: Tensor) -> str | None:
    """Why the delta rule's Triton kernels cannot serve heads of these widths, or None."""
    widest = max(q.shape[-1], v.shape[-1])
    if widest > 128 and q.dtype == torch.bfloat16 and q.is_cuda and capability_of(q.device)[0] == 9:
        return f"heads are {widest} wide, and compilers make wrong code of its kernels beyond 128 on Hopper"
    return None


def for_transform(backend: str, transform: str | None) -> str:
    """The backend under a transform (see `active_transform`): the reference alone has rules for all of them."""
    if transform is None or backend not in BACKENDS or backend == "reference":
        return backend
    if backend != "auto":
        raise BackendError(f'backend={backend!r} has no rule for {transform}; use backend="reference" (or "auto")')
    return "reference"


def fla_refuses(q: Tensor, special: bool, decays: bool) -> str | None:
    """Why flash-linear-attention cannot serve a call, or None."""
    if find_spec("fla") is None:
        return "flash-linear-attention is not installed (pip install fla-core)"
    if not q.is_cuda:
        return f"its kernels need a CUDA device, not {q.device.type}"
    if special:
        return "it is called without lengths and segments"
    if decays and torch.cuda.get_device_capability(q.device)[0] == 9 and (3, 4) <= _triton_version() < (3, 7, 1):
        return "Triton 3.4 to 3.7.0 returns wrong gradients for its gated kernels on Hopper"
    return None


def _triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:3] if part.isdigit())
