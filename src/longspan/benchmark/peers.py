"""The other sides of a comparison: FlexAttention, FlashAttention-4, torch's SDPA, our own backends, a user's function.

A peer is a function `(case, q, k, v) -> callable returning the output`, or it raises BenchmarkError with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longspan.benchmark.cases import Case
from longspan.benchmark.mask_mods import mask_mod_of
from longspan.config.errors import BenchmarkError
from longspan.functional import sparse_attention
from longspan_kernels.block_sparse import flash

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Peer = Callable[[Case, str], Attend]


def longspan(case: Case, device: str, backend: str = "auto") -> Attend:
    return lambda q, k, v: sparse_attention(q, k, v, case.pattern, causal=case.causal, backend=backend)  # type: ignore[return-value]


def sdpa(case: Case, device: str, backend: str | None = None) -> Attend:
    """Dense attention over everything (or everything before): what a user has who does nothing."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if backend is None:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=case.causal)
    chosen = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }[backend]
    if backend == "cudnn" and not device.startswith("cuda"):
        raise BenchmarkError("cuDNN needs a CUDA device")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(chosen):
            return F.scaled_dot_product_attention(q, k, v, is_causal=case.causal)

    return attend


def flex(case: Case, device: str, backend: str | None = None) -> Attend:
    """FlexAttention compiled, its block mask made outside the timing.

    Args:
        backend: of its `kernel_options`; "FLASH" runs FlashAttention-4's kernels, where flash-attn-4 is installed.
    """
    if not device.startswith("cuda"):
        raise BenchmarkError("FlexAttention does not train on CPUs")
    if backend == "FLASH":
        _flash_attention_4()
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if case.pattern.key.startswith("Full") and not case.causal:
        block_mask = None
    else:
        mod, per_head = mask_mod_of(case, device)
        compiled_mask = torch.compile(create_block_mask)
        block_mask = compiled_mask(mod, None, case.heads if per_head else None, case.length, case.length, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    options: Any = None if backend is None else {"BACKEND": backend}
    return lambda q, k, v: compiled(q, k, v, block_mask=block_mask, kernel_options=options)


def fa4(case: Case, device: str) -> Attend:
    """FlashAttention-4 itself, on what it has a flag for: everything, everything before, a window."""
    if not device.startswith("cuda"):
        raise BenchmarkError("FlashAttention-4 needs a CUDA device")
    flags = flash.flags_of(case.pattern.key, case.length, case.length, case.heads, case.causal)
    if flags is None:
        raise BenchmarkError("FlashAttention-4 has flags for full, causal and windowed attention alone")
    function = _flash_attention_4()
    return lambda q, k, v: flash.call(function, q, k, v, flags)[0]


def _flash_attention_4() -> Callable[..., Any]:
    try:
        return flash.flash_attn_func()
    except ImportError as error:
        raise BenchmarkError(f"flash-attn-4 is not installed: {error}") from None


def from_path(path: str) -> Peer:
    """A user's peer, `package.module:function`; it gets (case, device) and returns the callable to time."""
    module, _, name = path.partition(":")
    if not name:
        raise BenchmarkError(f"--peer {path}: write package.module:function")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BenchmarkError(f"--peer {path}: {error}") from None


PEERS: dict[str, Peer] = {
    "longspan": longspan,
    "longspan-blocked": lambda case, device: longspan(case, device, "blocked"),
    "longspan-triton": lambda case, device: longspan(case, device, "triton"),
    "longspan-dense": lambda case, device: longspan(case, device, "dense"),
    "sdpa": sdpa,
    "sdpa-cudnn": lambda case, device: sdpa(case, device, "cudnn"),
    "sdpa-flash": lambda case, device: sdpa(case, device, "flash"),
    "sdpa-efficient": lambda case, device: sdpa(case, device, "efficient"),
    "flex": flex,
    "flex-flash": lambda case, device: flex(case, device, "FLASH"),
    "fa4": fa4,
}


def find(name: str) -> Peer:
    if name in PEERS:
        return PEERS[name]
    if ":" in name:
        return from_path(name)
    raise BenchmarkError(f"--peer {name} is unknown; choose from {', '.join(PEERS)}, or package.module:function")
