"""Compiles the kernels of a pattern before any call needs them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from longspan_kernels.block_sparse.op import BackendError, layouts_for, triton_refuses
from longspan_kernels.block_sparse.registry import LowersToRules


def precompile(
    pattern: LowersToRules, lengths: Iterable[int | tuple[int, int]], *, heads: int, head_dim: int,
    dtype: torch.dtype = torch.bfloat16, causal: bool = False, device: torch.device | str = "cuda",
    key_heads: int | None = None, batch: int = 1, backward: bool = True,
) -> int:  # fmt: skip
    """Compiles what calls of a pattern at some lengths launch, all kernels at once in threads, without memory for q, k and v.

    A call compiles its own kernels when it comes first; this is for who wants several lengths up front. Lengths share most
    kernels, and Triton's disk cache keeps them for the next process.

    Args:
        pattern: any of `longspan.patterns`.
        lengths: T, or (Tq, Tk), of the calls to come.
        key_heads: Hkv; as many as `heads` where it is None.
        batch: B of the calls; few long rows are cut among more programs, by a kernel of its own.
        backward: whether the backward pass is compiled too.

    Returns:
        How many kernels were compiled, or read from the disk cache.

    Raises:
        BackendError: Triton does not run on the device, or not with this head width or dtype.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if reason := triton_refuses(torch.empty((1, 1, 1, head_dim), dtype=dtype, device="meta"), device):
        raise BackendError(f"precompile cannot serve {device}: {reason}")
    if device.type != "cuda":
        return 0  # Triton's interpreter compiles nothing
    from longspan_kernels.block_sparse.args import Call
    from longspan_kernels.block_sparse.triton.forward import plan_call
    from longspan_kernels.launch.launcher import compiling

    with torch.cuda.device(device), compiling(device) as wanted:
        for length in lengths:
            q_len, k_len = (length, length) if isinstance(length, int) else length
            q = torch.empty((batch, heads, q_len, head_dim), dtype=dtype, device="meta")
            k = torch.empty((batch, key_heads or heads, k_len, head_dim), dtype=dtype, device="meta")
            layout, rows, columns = layouts_for(q, k, pattern.key, causal, "triton", 0, device)
            plan_call(Call(q, k, k, layout, head_dim**-0.5, device=device), (rows, columns) if backward else None)
    return len(wanted)
