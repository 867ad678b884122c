"""The pass of the backward over rows in Triton: dq, tile row by tile row.

Weights are recomputed from the merged log-sum-exp, so the components of a layout are independent, and every sum has one
order, so that two runs give the same bits.

    p = exp(s - lse)    ds = p * (dp - delta)    delta = sum(dout * out) - dlse

Legend: BM x BN the tile of queries x keys, BD the head width D rounded up to a power of two. Triton is imported here: import
this file lazily.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.layout import Component
from longspan_kernels.block_sparse.triton.call import Call, Visits, index_stride, streamed, strides_of, visits_of
from longspan_kernels.block_sparse.triton.common import (
    LOG2E,
    VARYING,
    allowing_for_rounding,
    begin_entries,
    ends,
    entries_of,
    head_of,
    load_own,
    next_entry,
    part_of,
    scores_of,
    streamed_tile,
    tokens_of,
    weights,
    wide,
    widened,
    within,
    work_item,
)
from longspan_kernels.block_sparse.triton.configs import launch_of
from longspan_kernels.block_sparse.triton.masks import dropout_keeps, dropout_rows, kept, masked
from longspan_kernels.block_sparse.triton.schedule import Work
from longspan_kernels.block_sparse.triton.workspace import BiasSums, RowNumbers, Workspace, add_rows, add_splits, row_work
from longspan_kernels.launch.launcher import SMALL, SPLIT_ROWS, Plan, alignment, without_tma


@triton.jit
def query_gradient(
    acc, q, dout, lse2, most, delta, i, drawn, segments, K, V, EXCLUDED, K_SEGMENTS, BIAS, SUMS, visits, b, kv_head, u, first,
    masked_from, bits_from, stop, first_tile, k_stride, v_stride, index_stride, k_len, k_start, k_stop, step, k_per, factors,
    threshold, C: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Adds what the entries [first, stop) of a tile row give to dq / scale."""
    INDEXED: tl.constexpr = visits.K_INDEX is not None
    PRECISION: tl.constexpr = "ieee" if C.EXACT else "tf32"
    upcoming, AHEAD, DETAILS = begin_entries(visits, first, stop, first_tile, MODE)
    for e in tl.range(first, stop):
        tile, detail, upcoming, AHEAD, DETAILS = next_entry(upcoming, AHEAD, DETAILS, e, first, stop, C, MODE)
        base, token = tokens_of(visits.K_INDEX, u, index_stride, tile, k_start, step, k_per, C.BN, C.K_STEPPED)
        k_ok = within(token, k_stop)
        k = streamed_tile(
            K, b, kv_head, tile, base, token, k_ok, k_start, k_stride, step, k_per, C.BN, INDEXED, C.K_STEPPED, C, MODE
        )
        v = streamed_tile(
            V, b, kv_head, tile, base, token, k_ok, k_start, v_stride, step, k_per, C.BN, INDEXED, C.K_STEPPED, C, MODE
        )
        s = scores_of(q, tl.trans(k), C.EXACT) * factors.scale2  # (BM, BN)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)  # (BM, BN)
        if BIAS is not None:
            s += tl.load(BIAS + (tile * C.BN) // C.BIAS_BLOCK) * LOG2E
        p = weights(s - lse2[:, None], most)
        p = masked(p, 0.0, e, masked_from, bits_from, detail, visits.MASKS, C, MODE, False)
        p = kept(p, 0.0, i, token, token, k_ok, segments, K_SEGMENTS, EXCLUDED, k_len, C, False)
        if C.DROPOUT:
            dp = tl.where(dropout_keeps(drawn[:, None], token[None, :], threshold), dp * factors.inverse_keep, 0.0)
        ds = p * (dp - delta[:, None])
        if SUMS is not None:
            tl.store(SUMS + tile, tl.sum(tl.sum(ds, 1), 0))
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)  # (BM, BD)
    return acc


@triton.jit(do_not_specialize=VARYING)
def backward_rows(
    Q, K, V, DOUT, numbers, DQ, PARTIAL, SUMS, visits, limits, q_strides, k_strides, v_strides, o_strides, do_strides,
    dq_strides, factors,
    q_len: tl.int32, k_len: tl.int32, q_start: tl.int32, k_start: tl.int32, tile_rows: tl.int32, batch: tl.int32,
    heads: tl.int32, batch_groups: tl.int32, threshold: tl.int32, bias_first: tl.int32, bias_h: tl.int64, bias_row: tl.int64,
    step: tl.int32, q_per: tl.int32, k_per: tl.int32, q_index_stride: tl.int64, k_index_stride: tl.int64,
    sums_h: tl.int64, sums_row: tl.int64, sums_first: tl.int32, leaves_delta: tl.int32, C: tl.constexpr,
):  # fmt: skip
    """Writes dq of the queries of one tile row, or of a part of its entries as a partial result."""
    BM: tl.constexpr = C.BM
    BD: tl.constexpr = C.BD
    INDEXED: tl.constexpr = visits.Q_INDEX is not None
    b, h, tile_row, partial, u, served, entries = work_item(visits, heads, tile_rows, batch, batch_groups, C)
    first, masked_from, bits_from, stop, first_tile = entries_of(entries, served)
    offs_m = tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    kv_head = h // C.REPEAT
    Q = head_of(Q, b, h, q_strides, C)
    DOUT = head_of(DOUT, b, h, do_strides, C)
    if not C.BY_TMA:
        K = head_of(K, b, kv_head, k_strides, C)
        V = head_of(V, b, kv_head, v_strides, C)
    q_stop, k_stop = ends(limits, b, q_len, k_len)
    EXCLUDED, K_SEGMENTS, BIAS = limits.EXCLUDED, limits.K_SEGMENTS, limits.BIAS
    if EXCLUDED is not None:
        EXCLUDED += b64 * C.EXCLUSIONS * k_len
    if K_SEGMENTS is not None:
        K_SEGMENTS += b64 * k_len
    base, row = tokens_of(visits.Q_INDEX, u, q_index_stride, tile_row, q_start, step, q_per, BM, C.Q_STEPPED)
    row_ok = within(row, q_stop)
    last = q_len - 1
    q = load_own(Q, row, base, row_ok, last, wide(q_strides.t), step, offs_d, C, BM, INDEXED, C.Q_STEPPED)
    dout = load_own(DOUT, row, base, row_ok, last, wide(do_strides.t), step, offs_d, C, BM, INDEXED, C.Q_STEPPED)
    at = (b64 * heads + h64) * q_len + row
    lse = tl.load(numbers.LSE + at, mask=row_ok, other=float("-inf"))
    # A row without keys: all its weights come out 0.
    lse2 = tl.where(lse == float("-inf"), float("inf"), allowing_for_rounding(lse) * LOG2E)
    # Weights times the scale instead of the sum, where the dtype has digits enough below.
    SCALED: tl.constexpr = SUMS is None and DQ.dtype.element_ty == tl.bfloat16
    if SCALED:
        lse2 -= factors.log2_scale
    most = factors.log2_scale if SCALED else 0.0
    merge = tl.load(visits.MERGE + h) if C.MERGE else 0
    if numbers.OUT is None:
        delta = -tl.load(numbers.MINUS_DELTA + at, mask=row_ok, other=0.0)
    else:
        OUT = head_of(numbers.OUT, b, h, o_strides, C)
        out = load_own(OUT, row, base, row_ok, last, wide(o_strides.t), step, offs_d, C, BM, INDEXED, C.Q_STEPPED)
        delta = tl.sum(widened(out) * widened(dout), 1)
        if numbers.DLSE is not None:
            # The out of a row without keys is 0.
            delta -= tl.where(lse == float("-inf"), 0.0, tl.load(numbers.DLSE + at, mask=row_ok, other=0.0))
        # For the columns, which come after. Every part of a tile row finds the same.
        left = tl.where(served & (leaves_delta != 0) & (merge == 0), q_len, 0)
        tl.store(numbers.MINUS_DELTA + at, -delta, mask=within(row, left))
    i = row + (k_len - q_len)
    drawn = None
    if C.DROPOUT:
        drawn = dropout_rows(limits.SEED, b * heads + h, i)
    segments = None
    if limits.Q_SEGMENTS is not None:
        segments = tl.load(limits.Q_SEGMENTS + b64 * q_len + row, mask=row_ok, other=0)
    if BIAS is not None:
        BIAS += h64 * bias_h + (tile_row * BM + bias_first) // C.BIAS_BLOCK * bias_row
    if SUMS is not None:
        SUMS += (b64 * heads + h64) * sums_h + (tile_row + sums_first) * sums_row
    acc = tl.zeros([BM, BD], tl.float32)
    for mode in tl.static_range(4):
        if C.MODES[mode]:
            begin, end = part_of(mode, first, masked_from, bits_from, stop)
            acc = query_gradient(
                acc, q, dout, lse2, most, delta, i, drawn, segments, K, V, EXCLUDED, K_SEGMENTS, BIAS, SUMS, visits, b, kv_head,
                u, begin, masked_from, bits_from, end, first_tile, wide(k_strides.t), wide(v_strides.t), k_index_stride, k_len,
                k_start, k_stop, step, k_per, factors, threshold, C, mode,
            )  # fmt: skip
    if not SCALED:
        acc *= factors.scale
    limit = tl.where(served, q_len, 0)
    if PARTIAL is not None:
        if partial >= 0:
            tl.store(PARTIAL + (partial.to(tl.int64) * BM + offs_m)[:, None] * BD + offs_d[None, :], acc)
        limit = tl.where(partial < 0, limit, 0)
    ok = within(row, limit)
    dq = head_of(DQ, b, h, dq_strides, C)
    add_rows(dq, acc, row, base, ok, wide(dq_strides.t), step, merge, C.D, BD, BM, C.MERGE, INDEXED, C.Q_STEPPED)


@dataclass
class _Rows:
    """The plan of the launches over one component's rows; it serves all calls of one kind."""

    work: Work
    visits: Visits
    by_tma: bool
    partial: tuple[int, int, int] | None  # shape of the partial results
    main: Plan
    add: Plan | None


_planned: Derived[_Rows] = Derived()


def gradient_of_queries(
    call: Call,
    component: Component,
    dout: Tensor,
    numbers: RowNumbers,
    dq: Tensor,
    sums: BiasSums | None,
    workspace: Workspace | None,
    merging: bool,
) -> None:
    """Writes what a component gives to dq, or adds it; partial results lie in the workspace."""
    of_numbers = numbers.left, numbers.read, numbers.out.stride(), numbers.dlse is None
    rows = _planned.get(
        component,
        (merging, call.key, dout.stride(), dq.dtype, *of_numbers),
        lambda: _plan(call, component, dout, numbers, dq, sums, merging),
        call.device,
    )
    # As in the forward: listed rows that are not split take any address for partials.
    partial = None if rows.work.items is None else numbers.lse
    if rows.partial is not None:
        if workspace is None:
            partial = torch.empty(rows.partial, dtype=torch.float32, device=dq.device)
        else:
            partial = workspace.rest().take(*rows.partial)
    keys, _ = streamed((call.k, call.v), component, "k", rows.by_tma, call)
    tiles = None if sums is None else sums.tiles
    rows.main(call.q, *keys, dout, numbers.pointers(), dq, partial, tiles, rows.visits, call.limits(component))
    if rows.add is not None:
        rows.add(dq, partial, rows.work.splits, component.group, component.merge, component.q_index)


def _plan(
    call: Call, component: Component, dout: Tensor, numbers: RowNumbers, dq: Tensor, sums: BiasSums | None, merging: bool
) -> _Rows:
    B, H, Tq, D = call.q.shape
    work = row_work(call, component)
    choice = launch_of("backward_rows", call.q, component, call.device)
    by_tma = streamed((call.k, call.v), component, "k", choice.by_tma, call)[1]
    choice = choice if by_tma else without_tma(choice)
    lists = component.rows
    align = alignment(D, call.q, call.k, call.v, dout, dq, numbers.out)
    C = call.constants(component, lists, align, choice, merging)
    main = Plan(
        backward_rows,
        work.programs(B),
        call.sizes(component)
        | {
            "q_strides": strides_of(call.q),
            "k_strides": strides_of(call.k),
            "v_strides": strides_of(call.v),
            "o_strides": strides_of(numbers.out),
            "do_strides": strides_of(dout),
            "dq_strides": strides_of(dq),
            "factors": call.factors(),
            "tile_rows": lists.start.shape[1],
            "heads": H,
            "sums_h": 0 if sums is None else sums.tiles.stride(1),
            "sums_row": 0 if sums is None else sums.tiles.stride(2),
            "sums_first": 0 if sums is None else sums.first,
            "leaves_delta": int(numbers.left),
            "C": C,
        },
        choice,
    )
    x_b, x_h, x_t = strides_of(dq)
    add = Plan(
        add_splits,
        max(1, work.split_rows) * B * (component.block_q // SPLIT_ROWS),
        {
            "x_b": x_b,
            "x_h": x_h,
            "x_t": x_t,
            "index_stride": index_stride(component.q_index),
            "x_len": Tq,
            "x_start": component.q_start,
            "batch": B,
            "batch_groups": component.batch_groups,
            "D": D,
            "BD": C.BD,
            "B": C.BM,
            "BX": SPLIT_ROWS,
            "REPEAT": 1,
            "MERGE": merging,
            "ALIGN": alignment(D, dq),
        },
        SMALL,
    )
    partial = (work.partials * B, component.block_q, C.BD) if work.partials else None
    visits = visits_of(component, "rows", work.items, work.items is not None)
    return _Rows(work, visits, by_tma, partial, main, add if work.split_rows else None)
