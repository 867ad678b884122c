"""The pass of the backward over columns in Triton: dk and dv, tile column by tile column.

Weights are recomputed from the merged log-sum-exp, so the components of a layout are independent, and every sum has one
order, so that two runs give the same bits.

    p = exp(s - lse)    ds = p * (dp - delta)    delta = sum(dout * out) - dlse

Legend: BM x BN the tile of queries x keys, BD the head width D rounded up to a power of two, REPEAT query heads a key head.
Triton is imported here: import this file lazily.
"""

# ruff: noqa: SIM109 (compile-time branches stay statements)
from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.layout import Component
from longspan_kernels.block_sparse.triton.call import Call, Launches, launches_over, streamed, strides_of
from longspan_kernels.block_sparse.triton.common import (
    BAND,
    BITS,
    LN2,
    LOG2E,
    VARYING,
    Entries,
    Side,
    Stream,
    allowing_for_rounding,
    begin_entries,
    ends,
    entries_of,
    head_of,
    load_tile,
    next_entry,
    part_of,
    scores_of,
    streamed_head,
    streamed_tile,
    tokens_of,
    weights,
    wide,
    within,
    work_item,
)
from longspan_kernels.block_sparse.triton.masks import Given, dropout_keeps, dropout_rows, kept, masked
from longspan_kernels.block_sparse.triton.workspace import (
    RowNumbers,
    Workspace,
    add_rows,
    add_rows_or_keep,
    column_work,
    flags_of,
    is_second,
    kept_as,
    orders_keys_by_head,
    sum_of_splits,
    tell_second,
)


@triton.jit
def key_gradients(
    dk, dv, k, v, token, q_tiles, dout_tiles, queries, visits, entries, begin, end, given, LSE, MINUS_DELTA, SEED, BIAS,
    batch_head, origin, factors, threshold, bias_row, bias_first, C: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Adds what the entries [begin, end) of a tile column give to dk / scale and dv. Tiles are transposed: (BN, BM)."""
    PRECISION: tl.constexpr = "ieee" if C.EXACT else "tf32"
    STAGES: tl.constexpr = 1 if C.SERIAL_MASKS and (MODE == BAND or MODE == BITS) else None
    upcoming, AHEAD, DETAILS = begin_entries(visits, begin, end, entries.tile, MODE)
    for e in tl.range(begin, end, num_stages=STAGES):
        tile, detail, upcoming, AHEAD, DETAILS = next_entry(upcoming, AHEAD, DETAILS, e, begin, end, C, MODE)
        base, row = tokens_of(queries, tile, C.BM, C.Q_STEPPED)
        row_ok = within(row, given.stop)
        q = streamed_tile(q_tiles, tile, base, row, row_ok, queries, C.BM, C.Q_STEPPED, C, MODE)
        dout = streamed_tile(dout_tiles, tile, base, row, row_ok, queries, C.BM, C.Q_STEPPED, C, MODE)
        # The layout of s wants each of these in many threads. Loaded as one tensor of both they are fetched once and spread,
        # instead of once a thread.
        near = tl.minimum(tl.maximum(row, 0), given.length - 1)
        if MINUS_DELTA is None:
            lse2, minus_delta = tl.split(tl.load(LSE + 2 * near[:, None] + tl.arange(0, 2)[None, :]))
            lse = lse2 * LN2
        else:
            lse, minus_delta = tl.split(tl.load(tl.where(tl.arange(0, 2)[None, :] == 0, LSE, MINUS_DELTA) + near[:, None]))
            lse = allowing_for_rounding(lse)
            if BIAS is not None:
                # All masks leave out the pairs of a row without keys; a bias of -inf is no mask.
                lse = tl.where(lse == float("-inf"), float("inf"), lse)
            lse2 = lse * LOG2E
        if C.IN_SUMS:
            begun = tl.broadcast_to((lse * (-1.0 / factors.scale))[None, :], [C.BN, C.BM])
            s = tl.dot(k, tl.trans(q), begun, input_precision=PRECISION) * factors.scale2  # (BN, BM)
        else:
            s = scores_of(k, tl.trans(q), C.EXACT) * factors.scale2 - lse2[None, :]
        if C.IN_SUMS and SEED is None:
            begun = tl.broadcast_to(minus_delta[None, :], [C.BN, C.BM])
            dp = tl.dot(v, tl.trans(dout), begun, input_precision=PRECISION)  # (BN, BM)
        else:
            dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
        if BIAS is not None:
            s += tl.load(BIAS + (tile * C.BM + bias_first) // C.BIAS_BLOCK * bias_row) * LOG2E
        p = weights(s, 0.0)
        p = masked(p, 0.0, e, entries, detail, visits.MASKS, C, MODE, True)
        p = kept(p, 0.0, row + origin, token, row, row_ok, given, C, True)
        dropped = p
        if SEED is not None:
            drawn = dropout_rows(SEED, batch_head, row + origin)
            survives = dropout_keeps(drawn[None, :], token[:, None], threshold)
            dropped = tl.where(survives, p * factors.inverse_keep, 0.0)
            dp = tl.where(survives, dp * factors.inverse_keep, 0.0)
        if not C.IN_SUMS or SEED is not None:
            dp += minus_delta[None, :]
        dv = tl.dot(dropped.to(dout.dtype), dout, dv, input_precision=PRECISION)  # (BN, BD)
        ds = p * dp
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)  # (BN, BD)
    return dk, dv


@triton.jit(do_not_specialize=VARYING)
def backward_columns(
    Q, K, V, DOUT, LSE, MINUS_DELTA, DK, DV, PARTIAL_K, PARTIAL_V, FLAGS, visits, limits, q_strides, k_strides, v_strides,
    do_strides, dk_strides, dv_strides, factors,
    q_len: tl.int32, k_len: tl.int32, q_start: tl.int32, k_start: tl.int32, tile_rows: tl.int32, batch: tl.int32,
    heads: tl.int32, batch_groups: tl.int32, threshold: tl.int32, bias_first: tl.int32, bias_h: tl.int64, bias_row: tl.int64,
    step: tl.int32, q_per: tl.int32, k_per: tl.int32, q_index_stride: tl.int64, k_index_stride: tl.int64,
    flags: tl.int32, C: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv of the keys of one tile column, or of a part of its entries as a partial result; heads are key heads."""
    BN: tl.constexpr = C.BN
    BD: tl.constexpr = C.BD
    b, head, tile_column, partial, u, served, record = work_item(visits, heads, tile_rows, batch, batch_groups, C)
    offs_d = tl.arange(0, BD)
    b64 = b.to(tl.int64)
    q_stop, k_stop = ends(limits, b, q_len, k_len)
    EXCLUDED = None if limits.EXCLUDED is None else limits.EXCLUDED + b64 * C.EXCLUSIONS * k_len
    keys = Side(visits.K_INDEX, k_index_stride, u, k_start, step, k_per)
    base, token = tokens_of(keys, tile_column, BN, C.K_STEPPED)
    k_ok = within(token, k_stop)
    K = head_of(K, b, head, k_strides, C)
    V = head_of(V, b, head, v_strides, C)
    k = load_tile(K, token, base, k_ok, wide(k_strides.t), keys, offs_d, C.D, BN, C.K_STEPPED, True)
    v = load_tile(V, token, base, k_ok, wide(v_strides.t), keys, offs_d, C.D, BN, C.K_STEPPED, True)
    segments = None if limits.K_SEGMENTS is None else tl.load(limits.K_SEGMENTS + b64 * k_len + token, mask=k_ok, other=0)
    SEGMENTS = None if limits.Q_SEGMENTS is None else limits.Q_SEGMENTS + b64 * q_len
    given = Given(EXCLUDED, SEGMENTS, segments, q_len, q_stop)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    seen = 0
    for number in tl.range(0, C.REPEAT):
        h = head * C.REPEAT + number
        u_of = u
        if C.REPEAT > 1:
            # An item is a range of the entries of all the heads that share this key head, one head after another. Queries
            # may have an order for each head; where keys have, each key head has one query head: see `_of_each_head`.
            group = tl.load(visits.GROUP + h)
            u_of = tl.maximum(group, 0) + b * batch_groups
            own = visits.RECORDS + (u_of.to(tl.int64) * tile_rows + tile_column) * 8
            start = tl.load(own)
            count = tl.where(group < 0, 0, tl.load(own + 3) - start)
            masked_from = tl.load(own + 1)
            bits_from = tl.load(own + 2)
            first = start
            stop = start + count
            if visits.ITEMS is not None:
                first = start + tl.maximum(tl.load(record) - seen, 0)
                stop = start + tl.minimum(tl.load(record + 3) - seen, count)
            first_tile = tl.load(visits.INDEX + first, mask=first < stop, other=0)
            entries = Entries(first, masked_from, bits_from, stop, first_tile)
            seen += count
        else:
            entries = entries_of(record, served)
        queries = Side(visits.Q_INDEX, q_index_stride, u_of, q_start, step, q_per)
        batch_head = b * (heads * C.REPEAT) + h
        Q_OF, DOUT_OF = streamed_head(Q, b, h, q_strides, C), streamed_head(DOUT, b, h, do_strides, C)
        MINUS_DELTA_OF = MINUS_DELTA
        if MINUS_DELTA is None:
            LSE_OF = LSE + 2 * batch_head.to(tl.int64) * q_len
        else:
            LSE_OF = LSE + batch_head.to(tl.int64) * q_len
            MINUS_DELTA_OF += batch_head.to(tl.int64) * q_len
        BIAS_OF = limits.BIAS
        if BIAS_OF is not None:
            BIAS_OF = BIAS_OF + h.to(tl.int64) * bias_h + (tile_column * BN) // C.BIAS_BLOCK
        for mode in tl.static_range(4):
            if C.MODES[mode]:
                begin, end = part_of(mode, entries)
                if begin < end:
                    q_tiles = Stream(Q_OF, wide(q_strides.t), b, h)
                    dout_tiles = Stream(DOUT_OF, wide(do_strides.t), b, h)
                    dk, dv = key_gradients(
                        dk, dv, k, v, token, q_tiles, dout_tiles, queries, visits, entries, begin, end, given, LSE_OF,
                        MINUS_DELTA_OF, limits.SEED, BIAS_OF, batch_head, k_len - q_len, factors, threshold, bias_row,
                        bias_first, C, mode,
                    )  # fmt: skip
    dk *= factors.scale
    if C.CHECKED:
        # Keys past the length were computed from zeros; their rows mix with no others.
        dk = tl.where(k_ok[:, None], dk, 0.0)
        dv = tl.where(k_ok[:, None], dv, 0.0)
    dk_at = head_of(DK, b, head, dk_strides, C)
    dv_at = head_of(DV, b, head, dv_strides, C)
    k_stride, v_stride = wide(dk_strides.t), wide(dv_strides.t)
    PAIRED: tl.constexpr = PARTIAL_K is not None and PARTIAL_K.dtype.element_ty != tl.float32
    if PAIRED:
        ok = within(token, k_len)
        add_rows_or_keep(dk_at, PARTIAL_K, dk, partial, token, base, ok, k_stride, keys, C)
        add_rows_or_keep(dv_at, PARTIAL_V, dv, partial, token, base, ok, v_stride, keys, C)
    else:
        limit = k_len
        if PARTIAL_K is not None:
            if partial >= 0:
                place = (partial.to(tl.int64) * BN + tl.arange(0, BN))[:, None] * BD + offs_d[None, :]
                tl.store(PARTIAL_K + place, dk)
                tl.store(PARTIAL_V + place, dv)
            limit = tl.where(partial < 0, limit, 0)
        ok = within(token, limit)
        adds = 1
        if FLAGS is not None:
            adds = tl.where(is_second(FLAGS, partial, flags), 1, 1 if C.MERGE else 0)
        ADDS: tl.constexpr = C.MERGE or FLAGS is not None
        add_rows(dk_at, dk, token, base, ok, k_stride, keys, adds, C.D, BD, BN, C.K_STEPPED, ADDS)
        add_rows(dv_at, dv, token, base, ok, v_stride, keys, adds, C.D, BD, BN, C.K_STEPPED, ADDS)
        if FLAGS is not None:
            tell_second(FLAGS, partial, flags)


_planned: Derived[Launches] = Derived()


def gradients_of_keys(
    call: Call, component: Component, numbers: RowNumbers, dk: Tensor, dv: Tensor, workspace: Workspace | None, adding: bool
) -> None:
    """Writes what a component gives to dk and dv, or adds it; partial results lie in the workspace."""
    if orders_keys_by_head(call, component):
        _of_each_head(call, component, numbers, dk, dv, workspace)
        return
    dout, key = numbers.dout, (adding, call.key, numbers.dout.stride(), dk.dtype)
    launches = _planned.get(component, key, lambda: _plan(call, component, dout, dk, dv, adding), call.device)
    work, main = launches.work, launches.main
    partial_k = partial_v = None if work.items is None or work.in_two else kept_as(dk, numbers.lse)
    if launches.partial is not None:
        assert workspace is not None  # rows that go first leave none, and wait for columns that are not split
        rest, dtype = workspace.rest(), kept_as(dk, numbers.lse).dtype
        partial_k, partial_v = (rest.take(*launches.partial).view(dtype) for _ in range(2))
    of_rows = (numbers.lse, numbers.minus_delta) if numbers.pairs is None else (numbers.pairs, None)
    written = dk, dv, partial_k, partial_v, flags_of(work, call, component)
    (queries, douts), _ = streamed((call.q, dout), component, "q", main.choice.by_tma, call)
    main(queries, call.k, call.v, douts, *of_rows, *written, launches.visits, call.limits(component))
    for plan, gradient, partial in zip(launches.sums, (dk, dv), (partial_k, partial_v), strict=False):
        plan(gradient, partial, work.splits, component.group, None, component.k_index)


def _plan(call: Call, component: Component, dout: Tensor, dk: Tensor, dv: Tensor, adding: bool) -> Launches:
    work = column_work(call, component, adding)
    flags, streams, others = work.flags * call.q.shape[0], (call.q, dout), (dout, dk, dv)
    own = {"do_strides": strides_of(dout), "dk_strides": strides_of(dk), "dv_strides": strides_of(dv), "flags": flags}
    launches = launches_over(
        "columns", backward_columns, "backward_columns", call, component, work, streams, others, adding, own
    )
    if work.split_rows:
        launches.sums += [sum_of_splits("columns", call, component, work, x, adding) for x in (dk, dv)]
    return launches


def _of_each_head(
    call: Call, component: Component, numbers: RowNumbers, dk: Tensor, dv: Tensor, workspace: Workspace | None
) -> None:
    """Computes gradients of keys for each query head alone, and adds them up into dk and dv of the key heads."""
    (B, Hkv, Tk, D), repeat = call.k.shape, call.repeat
    k, v = call.k.repeat_interleave(repeat, 1), call.v.repeat_interleave(repeat, 1)
    own_k = torch.zeros((B, Hkv * repeat, Tk, D), dtype=torch.float32, device=k.device)
    own_v = torch.zeros_like(own_k)
    repeated = replace(call, k=k, v=v)
    gradients_of_keys(repeated, component, numbers, own_k, own_v, workspace, adding=True)
    for gradient, own in ((dk, own_k), (dv, own_v)):
        gradient.add_(own.view(B, Hkv, repeat, Tk, D).sum(2).to(gradient.dtype))
