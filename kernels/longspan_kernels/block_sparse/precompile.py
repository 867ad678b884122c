"""Compiles the kernels of a call before it launches them, and those of a pattern before any call needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.backends import BackendError, layouts_for, triton_refuses
from longspan_kernels.block_sparse.cache import HOST, Derived
from longspan_kernels.block_sparse.layout import Component, Layout
from longspan_kernels.block_sparse.registry import LowersToRules
from longspan_kernels.block_sparse.triton.call import Call
from longspan_kernels.block_sparse.triton.configs import lines_of
from longspan_kernels.launch.graphs import capturing
from longspan_kernels.launch.launcher import collecting, compiling, forms_compiled


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
    with torch.cuda.device(device), compiling(device) as wanted:
        for length in lengths:
            q_len, k_len = (length, length) if isinstance(length, int) else length
            q = torch.empty((batch, heads, q_len, head_dim), dtype=dtype, device="meta")
            k = torch.empty((batch, key_heads or heads, k_len, head_dim), dtype=dtype, device="meta")
            layout, rows, columns = layouts_for(q, k, pattern.key, causal, "triton", 0, device)
            plan_call(Call(q, k, k, layout, Options(head_dim**-0.5), device=device), (rows, columns) if backward else None)
    return len(wanted)


_compiled_calls: Derived[bool] = Derived()


def compile_first(call: Call, key: tuple, plan: Callable[[], None]) -> None:
    """Compiles what a call launches before it launches anything, several kernels at once; `plan` does so once for each key."""
    components = call.layout.components
    if call.device.type != "cuda" or not components or collecting() or capturing(call.device):
        return

    def compiled() -> bool:
        with compiling(call.device):
            plan()
        return True

    if components[0].dynamic:  # a new layout in each call: its form stands for it
        key = (*key, call.device, *map(_form, components))
        if key not in forms_compiled:
            forms_compiled[key] = compiled()
    else:
        _compiled_calls.get(components[0], key, compiled, HOST)  # on this thread, which collects the launches


def _form(component: Component) -> tuple:
    """What kernels are compiled for of a component that is made at run time."""
    c = component
    orders = c.q_index is None, c.k_index is None, c.positional, c.batch_groups > 0, len(c.rows.start) == 1
    return c.block_q, c.block_k, *orders, lines_of(c), None if c.excluded is None else c.excluded.shape[1]


def plan_call(call: Call, backward: tuple[Layout, Layout] | None) -> None:
    """Has `launcher.compiling` collect what the forward pass of a call launches, and the backward pass by two layouts."""
    from longspan_kernels.block_sparse.triton.backward import plan_backward
    from longspan_kernels.block_sparse.triton.forward import forward_pass

    out, _ = forward_pass(call.without_memory())
    if backward is not None:
        plan_backward(call, *backward, out, None, out)
