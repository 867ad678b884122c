"""The pass of the backward over rows in Triton: dq, tile row by tile row.

Weights are recomputed from the merged log-sum-exp, so the components of a layout are independent, and every sum has one
order, so that two runs give the same bits.

    p = exp(s - lse)    ds = p * (dp - delta)    delta = sum(dout * out) - dlse

Legend: BM x BN the tile of queries x keys, BD the head width D rounded up to a power of two. Triton is imported here: import
this file lazily.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.layout import Component
from longspan_kernels.block_sparse.triton.call import Call, Launches, launches_over, streamed, strides_of
from longspan_kernels.block_sparse.triton.common import (
    LOG2E,
    VARYING,
    Side,
    Stream,
    allowing_for_rounding,
    begin_entries,
    ends,
    entries_of,
    head_of,
    load_own,
    next_entry,
    part_of,
    scores_of,
    streamed_head,
    streamed_tile,
    tokens_of,
    weights,
    wide,
    widened,
    within,
    work_item,
)
from longspan_kernels.block_sparse.triton.masks import Given, dropout_keeps, dropout_rows, kept, masked
from longspan_kernels.block_sparse.triton.workspace import BiasSums, RowNumbers, Workspace, add_rows, row_work, sum_of_splits


@triton.jit
def query_gradient(
    acc, q, dout, lse2, most, delta, i, drawn, k_tiles, v_tiles, keys, visits, entries, begin, end, given, BIAS, SUMS, factors,
    threshold, C: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Adds what the entries [begin, end) of a tile row give to dq / scale."""
    PRECISION: tl.constexpr = "ieee" if C.EXACT else "tf32"
    upcoming, AHEAD, DETAILS = begin_entries(visits, begin, end, entries.tile, MODE)
    for e in tl.range(begin, end):
        tile, detail, upcoming, AHEAD, DETAILS = next_entry(upcoming, AHEAD, DETAILS, e, begin, end, C, MODE)
        base, token = tokens_of(keys, tile, C.BN, C.K_STEPPED)
        k_ok = within(token, given.stop)
        k = streamed_tile(k_tiles, tile, base, token, k_ok, keys, C.BN, C.K_STEPPED, C, MODE)
        v = streamed_tile(v_tiles, tile, base, token, k_ok, keys, C.BN, C.K_STEPPED, C, MODE)
        s = scores_of(q, tl.trans(k), C.EXACT) * factors.scale2  # (BM, BN)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)  # (BM, BN)
        if BIAS is not None:
            s += tl.load(BIAS + (tile * C.BN) // C.BIAS_BLOCK) * LOG2E
        p = weights(s - lse2[:, None], most)
        p = masked(p, 0.0, e, entries, detail, visits.MASKS, C, MODE, False)
        p = kept(p, 0.0, i, token, token, k_ok, given, C, False)
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
    b, h, tile_row, partial, u, served, record = work_item(visits, heads, tile_rows, batch, batch_groups, C)
    entries = entries_of(record, served)
    offs_m = tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    kv_head = h // C.REPEAT
    Q = head_of(Q, b, h, q_strides, C)
    DOUT = head_of(DOUT, b, h, do_strides, C)
    K, V = streamed_head(K, b, kv_head, k_strides, C), streamed_head(V, b, kv_head, v_strides, C)
    q_stop, k_stop = ends(limits, b, q_len, k_len)
    BIAS = limits.BIAS
    EXCLUDED = None if limits.EXCLUDED is None else limits.EXCLUDED + b64 * C.EXCLUSIONS * k_len
    SEGMENTS = None if limits.K_SEGMENTS is None else limits.K_SEGMENTS + b64 * k_len
    queries = Side(visits.Q_INDEX, q_index_stride, u, q_start, step, q_per)
    keys = Side(visits.K_INDEX, k_index_stride, u, k_start, step, k_per)
    base, row = tokens_of(queries, tile_row, BM, C.Q_STEPPED)
    row_ok = within(row, q_stop)
    last = q_len - 1
    q = load_own(Q, row, base, row_ok, last, wide(q_strides.t), queries, offs_d, BM, C.Q_STEPPED, C)
    dout = load_own(DOUT, row, base, row_ok, last, wide(do_strides.t), queries, offs_d, BM, C.Q_STEPPED, C)
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
        out = load_own(OUT, row, base, row_ok, last, wide(o_strides.t), queries, offs_d, BM, C.Q_STEPPED, C)
        delta = tl.sum(widened(out) * widened(dout), 1)
        if numbers.DLSE is not None:
            # The out of a row without keys is 0.
            delta -= tl.where(lse == float("-inf"), 0.0, tl.load(numbers.DLSE + at, mask=row_ok, other=0.0))
        # For the columns, which come after. Every part of a tile row finds the same.
        left = tl.where(served & (leaves_delta != 0) & (merge == 0), q_len, 0)
        tl.store(numbers.MINUS_DELTA + at, -delta, mask=within(row, left))
    i = row + (k_len - q_len)
    drawn = dropout_rows(limits.SEED, b * heads + h, i) if C.DROPOUT else None
    segments = None if limits.Q_SEGMENTS is None else tl.load(limits.Q_SEGMENTS + b64 * q_len + row, mask=row_ok, other=0)
    if BIAS is not None:
        BIAS += h64 * bias_h + (tile_row * BM + bias_first) // C.BIAS_BLOCK * bias_row
    if SUMS is not None:
        SUMS += (b64 * heads + h64) * sums_h + (tile_row + sums_first) * sums_row
    acc = tl.zeros([BM, BD], tl.float32)
    given = Given(EXCLUDED, SEGMENTS, segments, k_len, k_stop)
    k_tiles = Stream(K, wide(k_strides.t), b, kv_head)
    v_tiles = Stream(V, wide(v_strides.t), b, kv_head)
    for mode in tl.static_range(4):
        if C.MODES[mode]:
            begin, end = part_of(mode, entries)
            acc = query_gradient(
                acc, q, dout, lse2, most, delta, i, drawn, k_tiles, v_tiles, keys, visits, entries, begin, end, given, BIAS,
                SUMS, factors, threshold, C, mode,
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
    add_rows(dq, acc, row, base, ok, wide(dq_strides.t), queries, merge, C.D, BD, BM, C.Q_STEPPED, C.MERGE)


_planned: Derived[Launches] = Derived()


def gradient_of_queries(
    call: Call,
    component: Component,
    numbers: RowNumbers,
    dq: Tensor,
    sums: BiasSums | None,
    workspace: Workspace | None,
    merging: bool,
) -> None:
    """Writes what a component gives to dq, or adds it; partial results lie in the workspace."""
    strides = numbers.out.stride(), numbers.dout.stride()
    key = merging, call.key, strides, dq.dtype, numbers.left, numbers.read, numbers.dlse is None
    launches = _planned.get(component, key, lambda: _plan(call, component, numbers, dq, sums, merging), call.device)
    # As in the forward: listed rows that are not split take any address for partials.
    partial = None if launches.work.items is None else numbers.lse
    if launches.partial is not None:
        if workspace is None:
            partial = torch.empty(launches.partial, dtype=torch.float32, device=dq.device)
        else:
            partial = workspace.rest().take(*launches.partial)
    keys, _ = streamed((call.k, call.v), component, "k", launches.main.choice.by_tma, call)
    written = dq, partial, None if sums is None else sums.tiles
    launches.main(call.q, *keys, numbers.dout, numbers.pointers(), *written, launches.visits, call.limits(component))
    for add in launches.sums:
        add(dq, partial, launches.work.splits, component.group, component.merge, component.q_index)


def _plan(call: Call, component: Component, numbers: RowNumbers, dq: Tensor, sums: BiasSums | None, merging: bool) -> Launches:
    work = row_work(call, component)
    strides = {"o_strides": strides_of(numbers.out), "do_strides": strides_of(numbers.dout), "dq_strides": strides_of(dq)}
    h, row, first = (0, 0, 0) if sums is None else (*sums.tiles.stride()[1:3], sums.first)
    own = {**strides, "sums_h": h, "sums_row": row, "sums_first": first, "leaves_delta": int(numbers.left)}
    streams, others = (call.k, call.v), (numbers.dout, dq, numbers.out)
    launches = launches_over("rows", backward_rows, "backward_rows", call, component, work, streams, others, merging, own)
    if work.split_rows:
        launches.sums.append(sum_of_splits("rows", call, component, work, dq, merging))
    return launches
