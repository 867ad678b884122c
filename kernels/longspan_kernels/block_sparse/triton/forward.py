"""The forward pass in Triton: one launch a component, plus a merge of cut rows where a component has any.

Triton is imported here: import this file lazily. The kernels are in forward_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Call, alignment, output_like, streamed
from longspan_kernels.block_sparse.layout import Component, Layout
from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.block_sparse.triton.forward_kernels import forward_rows, merge_pieces
from longspan_kernels.block_sparse.triton.schedule import Work, work_of
from longspan_kernels.block_sparse.triton.tuning import launch_of, lines_of
from longspan_kernels.launch.graphs import capturing, made_outside_graphs
from longspan_kernels.launch.launcher import PIECE_ROWS, SMALL, Plan, collecting, compiling, on_its_device, without_tma


@on_its_device
def triton_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float,
    q_lengths: Tensor | None = None, k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None, k_segments: Tensor | None = None,
    dropout_p: float = 0.0, seed: Tensor | None = None, bias: Tensor | None = None, bias_block: int = 0,
    backward: tuple[Layout, Layout] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over the tiles of a layout.

    Args:
        q: [B, H, Tq, D]; k, v: [B, Hkv, Tk, D]; float16, bfloat16 or float32, any strides.
        scale: factor of the scores.
        q_lengths, k_lengths: [B] int32; tokens at or past it do not exist.
        q_segments: [B, Tq], k_segments: [B, Tk]; a pair also needs equal segments.
        seed: int64 scalar on the device, for dropout of the weights (the normaliser is undropped).
        bias: [H or 1, query blocks, key blocks] float32, added to scaled scores.
        backward: the layouts of a backward pass that follows (over rows, over columns): its kernels compile with these.

    Returns:
        out [B, H, Tq, D] in q's dtype and lse [B, H, Tq] float32, natural log; 0 and -inf for a query without keys.

    Raises:
        UnsupportedCall: a dtype, width or bias that this backend does not serve.
    """
    if interprets_bfloat16(q):
        out, lse = triton_forward(
            q.float(), k.float(), v.float(), layout, scale=scale, q_lengths=q_lengths, k_lengths=k_lengths,
            q_segments=q_segments, k_segments=k_segments, dropout_p=dropout_p, seed=seed, bias=bias, bias_block=bias_block,
        )  # fmt: skip
        return out.to(q.dtype), lse
    call = Call(q, k, v, layout, scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, bias, bias_block)
    compile_first(call, ("forward", call.key, backward is not None), lambda: plan_call(call, backward))
    return _forward(call)


def compile_first(call: Call, key: tuple, plan: Callable[[], None]) -> None:
    """Compiles what a call launches before it launches anything, several kernels at once; `plan` does so once for each key."""
    components = call.layout.components
    if call.device.type != "cuda" or not components or collecting() or capturing(call.device):
        return
    # A layout that is made at run time is a new one in each call: its form stands for it.
    dynamic = components[0].dynamic
    done: Any = _forms_compiled if dynamic else components[0].cache
    key = (*key, call.device, *map(_form, components)) if dynamic else key
    if key not in done:
        with compiling(call.device):
            plan()
        done[key] = True


_forms_compiled: dict[tuple, bool] = {}


def _form(component: Component) -> tuple:
    """What kernels are compiled for of a component that is made at run time."""
    c = component
    orders = c.q_index is None, c.k_index is None, c.positional, c.batch_groups > 0, len(c.rows.start) == 1
    return c.block_q, c.block_k, *orders, lines_of(c), None if c.excluded is None else c.excluded.shape[1]


def plan_call(call: Call, backward: tuple[Layout, Layout] | None) -> None:
    """Has `launcher.compiling` collect what the forward pass of a call launches, and the backward pass by two layouts."""
    from longspan_kernels.block_sparse.triton.backward import plan_backward

    out, _ = _forward(call.without_memory())
    if backward is not None:
        plan_backward(call, *backward, out, None, out)


def _forward(call: Call) -> tuple[Tensor, Tensor]:
    q, layout = call.q, call.layout
    out = output_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if not layout.covered:
        out.zero_()
        lse.fill_(float("-inf"))
    for number, component in enumerate(layout.components):
        _component(call, component, out, lse, merging=number > 0 or not layout.covered)
    return out, lse


@dataclass
class _Rows:
    """What the launches over one component's rows have in common for all calls of one kind."""

    work: Work
    pattern: tuple
    by_tma: bool
    part: tuple[int, int, int] | None  # shape of the partial results
    main: Plan
    merge: Plan | None


def _component(call: Call, component: Component, out: Tensor, lse: Tensor, merging: bool) -> None:
    key = ("forward", merging, call.key)
    rows = component.cache.get(key)
    if rows is None:
        rows = made_outside_graphs(lambda: _plan(call, component, out, lse, merging), call.device, not component.dynamic)
        component.cache[key] = rows
    part = part_lse = _no_pieces(rows, lse)
    if rows.part is not None:
        part = torch.empty(rows.part, dtype=torch.float32, device=out.device)
        part_lse = torch.empty(rows.part[:2], dtype=torch.float32, device=out.device)
    rows.main(*_tensors(call, component, rows, out, lse, part, part_lse))
    if rows.merge is not None:
        rows.merge(out, lse, part, part_lse, rows.work.splits, component.group, component.merge, component.q_index)


def _no_pieces(rows: _Rows, lse: Tensor) -> Tensor | None:
    """Listed rows may be cut at one length and not at another: the kernel is the same, and takes any address for no pieces."""
    return None if rows.work.items is None else lse


def _tensors(
    call: Call, component: Component, rows: _Rows, out: Tensor, lse: Tensor, part: Tensor | None, part_lse: Tensor | None
) -> tuple:  # fmt: skip
    keys, _ = streamed((call.k, call.v), component, "k", rows.by_tma, call)
    limits = call.limits(component)
    return call.q, *keys, out, lse, *rows.pattern, component.merge, rows.work.items, part, part_lse, *limits


def _plan(call: Call, component: Component, out: Tensor, lse: Tensor, merging: bool) -> _Rows:
    B, H, Tq, D = call.q.shape
    work = work_of(component, "rows", 1, B, everything=call.layout.covered and component.covers)
    choice = launch_of("forward", call.q, component, call.device)
    numbers = call.numbers(component)
    by_tma = streamed((call.k, call.v), component, "k", choice.by_tma, call)[1]
    choice = choice if by_tma else without_tma(choice)
    o_b, o_h, o_t, _ = out.stride()
    lists = component.rows
    main = Plan(forward_rows, work.programs(B), numbers | {
        "o_b": o_b, "o_h": o_h, "o_t": o_t, "lines": lists.start.shape[1], "owners": H, "CONTIGUOUS": lists.contiguous,
        "DROPOUT": call.seed is not None, "MERGE": merging, "ALIGN": alignment(D, call.q, call.k, call.v, out),
        "ONE_LOOP": choice.one_loop and len(component.masks) > 0, "BY_TMA": by_tma,
    }, choice)  # fmt: skip
    merge = Plan(merge_pieces, max(1, work.cut) * B * (component.block_q // PIECE_ROWS), {
        "o_b": o_b, "o_h": o_h, "o_t": o_t, "q_index_stride": numbers["q_index_stride"], "q_len": Tq,
        "q_start": component.q_start, "batch": B, "owners": H, "batch_groups": component.batch_groups,
        "D": D, "BD": numbers["BD"], "BM": numbers["BM"], "BX": PIECE_ROWS, "MERGE": merging, "ALIGN": alignment(D, out),
    }, SMALL)  # fmt: skip
    part = (work.slots * B, component.block_q, numbers["BD"]) if work.slots else None
    return _Rows(work, call.pattern(component, "rows", work.items is not None), by_tma, part, main, merge if work.cut else None)
