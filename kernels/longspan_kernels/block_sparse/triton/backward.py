"""The backward pass in Triton: for each component one launch over rows (dq) and one over columns (dk, dv).

Every sum has one order: gradients of components add up in the order of the components, parts of a split tile row in theirs,
heads that share a key head in theirs. Triton is imported here: import this file lazily.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.cache import HOST, Derived
from longspan_kernels.block_sparse.layout import Component, Layout
from longspan_kernels.block_sparse.triton.backward_columns import gradients_of_keys
from longspan_kernels.block_sparse.triton.backward_rows import gradient_of_queries
from longspan_kernels.block_sparse.triton.call import LEAST_SCALE, Call
from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.block_sparse.triton.configs import row_kind
from longspan_kernels.block_sparse.triton.workspace import (
    BiasSums,
    RowNumbers,
    Workspace,
    adds_up,
    in_pairs,
    prepare,
    rows_are_listed,
    rows_go_first,
)
from longspan_kernels.launch.graphs import capturing
from longspan_kernels.launch.launcher import (
    as_contiguous,
    collecting,
    compiling,
    forms_compiled,
    from_16_bytes,
    on_its_device,
    on_meta,
    readable,
)
from longspan_kernels.launch.ops import output_like


@on_its_device
def triton_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Layout,
    options: Options,
    *,
    columns: Layout | None = None,
    sides: tuple[str, ...] = ("rows", "columns"),
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `triton_forward`, whose arguments and results these are; dout [B, H, Tq, D], dlse [B, H, Tq] or None.

    Args:
        columns: the same pattern compiled with other tiles, for the pass over columns; None for `layout` itself.
        sides: what to compute: "rows" gives dq and dbias, "columns" dk and dv; what is left out holds anything.

    Returns:
        dq, dk, dv in the dtype of q, and dbias float32 in the shape of the bias (None without one). The same bits each run.
    """
    if interprets_bfloat16(q):
        wide = q.float(), k.float(), v.float(), out.float()
        *found, dbias = triton_backward(dout.float(), dlse, *wide, lse, layout, options, columns=columns, sides=sides)
        dq, dk, dv = (x.to(q.dtype) for x in found)
        return dq, dk, dv, dbias
    call = Call(q, k, v, layout, options)
    columns = layout if columns is None else columns
    dout, out = readable(dout), readable(out)
    lse, dlse = from_16_bytes(lse.contiguous()), as_contiguous(None if dlse is None else dlse.float())
    key = ("backward", call.key, *sides, dout.stride(), out.stride(), dlse is None)
    compile_first(call, key, lambda: plan_backward(call, layout, columns, dout, dlse, out, sides))
    return _backward(call, dout, dlse, out, lse, columns.components, sides)


def plan_backward(
    call: Call,
    layout: Layout,
    columns: Layout,
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    sides: tuple[str, ...] = ("rows", "columns"),
) -> None:
    """Has `launcher.compiling` collect what the backward pass of a call launches, whatever its layout."""
    given = call.without_memory(layout)
    lse = torch.empty(call.q.shape[:3], dtype=torch.float32, device="meta")
    dlse = None if dlse is None else lse
    _backward(given, on_meta(dout), dlse, on_meta(out), lse, columns.components, sides)


def _backward(
    call: Call, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, by_columns: list[Component], sides: tuple[str, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    dq, dk, dv = output_like(call.q), output_like(call.k), output_like(call.v)
    sums = None if call.options.bias is None else BiasSums(call, call.options.bias)
    if len(sides) == 2 and rows_go_first(call, by_columns):
        # Rows work out delta and leave it behind; their partial results lie in dk's memory, which is written after them.
        numbers = RowNumbers(lse, torch.empty_like(lse), out, dout, dlse, left=True)
        _all_rows(call, numbers, dq, sums, Workspace(dk))
        _all_columns(call, by_columns, numbers, dk, dv, None)
    else:
        # Where columns are split, delta and the partial results of columns lie in dq's memory, which is written after them.
        workspace = Workspace(dq)
        pairs = workspace.take(*lse.shape, 2) if in_pairs(call, by_columns) else None
        read = pairs is not None and not rows_are_listed(call)
        minus_delta = torch.empty_like(lse) if read else workspace.take(*lse.shape)
        numbers = RowNumbers(lse, minus_delta, out, dout, dlse, left=False, pairs=pairs, read=read)
        if "columns" in sides or read:
            prepare(call, numbers)
        if "columns" in sides:
            _all_columns(call, by_columns, numbers, dk, dv, workspace)
        if "rows" in sides:
            _all_rows(call, numbers, dq, sums, None)
    if call.negate:
        dq.neg_()
    if call.options.scale == LEAST_SCALE:  # stands for 0
        dq.zero_()
        dk.zero_()
    return dq, dk, dv, None if sums is None else sums.reduced()


def _all_rows(call: Call, numbers: RowNumbers, dq: Tensor, sums: BiasSums | None, workspace: Workspace | None) -> None:
    layout = call.layout
    if not layout.covered:
        dq.zero_()
    for number, component in enumerate(layout.components):
        gradient_of_queries(call, component, numbers, dq, sums, workspace, merging=number > 0 or not layout.covered)


def _all_columns(
    call: Call, components: list[Component], numbers: RowNumbers, dk: Tensor, dv: Tensor, workspace: Workspace | None
) -> None:
    if not components or adds_up(0, components[0]):
        dk.zero_()
        dv.zero_()
    for number, component in enumerate(components):
        gradients_of_keys(call, component, numbers, dk, dv, workspace, adding=adds_up(number, component))


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
    return c.block_q, c.block_k, *orders, row_kind(c), None if c.excluded is None else c.excluded.shape[1]


def plan_call(call: Call, backward: tuple[Layout, Layout] | None) -> None:
    """Has `launcher.compiling` collect what the forward pass of a call launches, and the backward pass by two layouts."""
    from longspan_kernels.block_sparse.triton.forward import forward_pass

    out, _ = forward_pass(call.without_memory())
    if backward is not None:
        plan_backward(call, *backward, out, None, out)
