"""Triton kernels of the backward pass: dq, row by row. Triton is imported here: import this file lazily.

Weights are recomputed from the merged log-sum-exp, so the components of a layout are independent, and every sum has one
order, so that two runs give the same bits.

    p = exp(s - lse)    ds = p * (dp - delta)    delta = sum(dout * out) - dlse

Legend: BM x BN the tile of queries x keys, BD the head width D rounded up to a power of two, SHARE query heads a key head.
"""

# ruff: noqa: SIM109, SIM300 (compile-time branches stay statements)
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.backward_sums import add_rows
from longspan_kernels.block_sparse.triton.common import (
    BAND,
    BITS,
    FULL,
    LOG2E,
    VARYING,
    allowing_for_rounding,
    copied_tile,
    dropout_keeps,
    dropout_rows,
    end_of,
    following,
    included,
    load_own,
    load_tile,
    masked,
    scores_of,
    tokens_of,
    weights,
    widened,
    within,
    work_item,
)


@triton.jit
def query_gradient(
    acc, q, dout, lse2, most, delta, i, rows, segments, K, V, K_INDEX, K_SEGMENTS, INDEX, DETAIL, MASKS, EXCLUDED, BIAS, SUMS,
    b, kv_head, u, first, masked_from, bits_from, stop, first_tile, k_stride, v_stride, index_stride, k_len, k_start,
    k_stop, step, k_per, scale2, inverse_keep, threshold, MODE: tl.constexpr, CONTIGUOUS: tl.constexpr,
    CHECKED: tl.constexpr, POSITIONAL: tl.constexpr, STEPPED: tl.constexpr, BY_TMA: tl.constexpr,
    HAS_BANDS: tl.constexpr, HAS_BITS: tl.constexpr, EXCLUSIONS: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WORDS: tl.constexpr, BIAS_BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Adds what the entries [first, stop) of a row give to dq / scale."""
    offs_m = tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, BD)
    RUN: tl.constexpr = CONTIGUOUS and MODE == FULL
    LOOK: tl.constexpr = CHECKED or MODE != FULL
    PRECISION: tl.constexpr = "ieee" if EXACT else "tf32"
    upcoming = first_tile
    # Pointers of their own: INDEX + e would make e a number of 64 bits.
    AHEAD = INDEX + first + 1
    DETAILS = DETAIL
    if MODE != FULL:
        DETAILS += first
    if MODE == BAND or MODE == BITS:
        upcoming = tl.load(INDEX + first, mask=stop > first, other=0)
    for e in tl.range(first, stop):
        if RUN:
            tile = upcoming + (e - first)
        else:
            # Read one entry ahead: the loads of keys wait for this number.
            tile = upcoming
            upcoming = following(AHEAD, e, stop, CHECKED)
            AHEAD += 1
        detail = 0
        if MODE != FULL:
            detail = tl.load(DETAILS)
            DETAILS += 1
        base, token = tokens_of(K_INDEX, u, index_stride, tile, k_start, step, k_per, BN, STEPPED)
        k_ok = within(token, k_stop)
        if BY_TMA:
            k = copied_tile(K, b, kv_head, tile, base, k_start, k_per, BN, BD, STEPPED)
            v = copied_tile(V, b, kv_head, tile, base, k_start, k_per, BN, BD, STEPPED)
        else:
            k = load_tile(K, token, base, k_ok, k_stride, step, offs_d, D, BD, BN, LOOK, K_INDEX is not None, STEPPED)
            v = load_tile(V, token, base, k_ok, v_stride, step, offs_d, D, BD, BN, LOOK, K_INDEX is not None, STEPPED)
        s = scores_of(q, tl.trans(k), EXACT) * scale2  # (BM, BN)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)  # (BM, BN)
        if BIAS is not None:
            s += tl.load(BIAS + (tile * BN) // BIAS_BLOCK) * LOG2E
        p = weights(s - lse2[:, None], most)
        p = masked(p, 0.0, e, masked_from, bits_from, detail, MASKS, offs_m[:, None], offs_n[None, :], BM, WORDS, MODE,
                   HAS_BANDS, HAS_BITS, False)  # fmt: skip
        if CHECKED:
            p = tl.where(k_ok[None, :], p, 0.0)
        if POSITIONAL:
            p = tl.where(i[:, None] >= token[None, :], p, 0.0)
        if EXCLUDED is not None:
            p = included(p, 0.0, EXCLUDED, i, token, k_len, EXCLUSIONS, False)
        if K_SEGMENTS is not None:
            same = tl.load(K_SEGMENTS + token, mask=k_ok, other=0)
            p = tl.where(segments[:, None] == same[None, :], p, 0.0)
        if DROPOUT:
            dp = tl.where(dropout_keeps(rows[:, None], token[None, :], threshold), dp * inverse_keep, 0.0)
        ds = p * (dp - delta[:, None])
        if SUMS is not None:
            tl.store(SUMS + tile, tl.sum(tl.sum(ds, 1), 0))
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)  # (BM, BD)
    return acc


@triton.jit(do_not_specialize=VARYING)
def backward_rows(
    Q, K, V, DOUT, LSE, MINUS_DELTA, OUT, DLSE, DQ, LINES, INDEX, DETAIL, MASKS, Q_INDEX, K_INDEX, GROUP, MERGES, ITEMS, PART,
    Q_LENGTHS, K_LENGTHS, Q_SEGMENTS, K_SEGMENTS, SEED, EXCLUDED, BIAS, SUMS, q_b: tl.int64, q_h: tl.int64, q_t: tl.int64,
    k_b: tl.int64, k_h: tl.int64, k_t: tl.int64, v_b: tl.int64, v_h: tl.int64, v_t: tl.int64, o_b: tl.int64, o_h: tl.int64,
    o_t: tl.int64, do_b: tl.int64, do_h: tl.int64, do_t: tl.int64, dq_b: tl.int64, dq_h: tl.int64, dq_t: tl.int64,
    q_index_stride: tl.int64, k_index_stride: tl.int64, bias_h: tl.int64, bias_row: tl.int64, sums_h: tl.int64,
    sums_row: tl.int64, q_len: tl.int32, k_len: tl.int32, q_start: tl.int32, k_start: tl.int32, lines: tl.int32,
    batch: tl.int32, owners: tl.int32, batch_groups: tl.int32, threshold: tl.int32, bias_first: tl.int32,
    sums_first: tl.int32, step: tl.int32, q_per: tl.int32, k_per: tl.int32, leaves_delta: tl.int32, scale, log2_scale,
    scale2, inverse_keep, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WORDS: tl.constexpr,
    SHARE: tl.constexpr, CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr, POSITIONAL: tl.constexpr,
    Q_STEPPED: tl.constexpr, K_STEPPED: tl.constexpr, HAS_BANDS: tl.constexpr, HAS_BITS: tl.constexpr,
    EXCLUSIONS: tl.constexpr, ONE_GROUP: tl.constexpr, ONE_LOOP: tl.constexpr, BY_TMA: tl.constexpr, DROPOUT: tl.constexpr,
    MERGE: tl.constexpr, BIAS_BLOCK: tl.constexpr, ALIGN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    b, h, line, slot, u, served, entries = work_item(ITEMS, LINES, GROUP, owners, lines, batch, batch_groups, ONE_GROUP)
    first = tl.load(entries)
    masked_from = tl.load(entries + 1)
    bits_from = tl.load(entries + 2)
    stop = tl.where(served, tl.load(entries + 3), first)
    first_tile = tl.load(entries + 4)
    offs_m = tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    kv_head = h // SHARE
    kv64 = kv_head.to(tl.int64)
    Q += tl.multiple_of(b64 * q_b + h64 * q_h, ALIGN)
    DOUT += tl.multiple_of(b64 * do_b + h64 * do_h, ALIGN)
    if not BY_TMA:
        K += tl.multiple_of(b64 * k_b + kv64 * k_h, ALIGN)
        V += tl.multiple_of(b64 * v_b + kv64 * v_h, ALIGN)
    q_stop = q_len
    k_stop = k_len
    if Q_LENGTHS is not None:
        q_stop = end_of(Q_LENGTHS, b, q_len)
    if EXCLUDED is not None:
        EXCLUDED += b64 * EXCLUSIONS * k_len
    if K_LENGTHS is not None:
        k_stop = end_of(K_LENGTHS, b, k_len)
    if K_SEGMENTS is not None:
        K_SEGMENTS += b64 * k_len
    base, row = tokens_of(Q_INDEX, u, q_index_stride, line, q_start, step, q_per, BM, Q_STEPPED)
    row_ok = within(row, q_stop)
    INDEXED: tl.constexpr = Q_INDEX is not None
    q = load_own(Q, row, base, row_ok, q_len - 1, q_t, step, offs_d, D, BD, BM, CHECKED, INDEXED, Q_STEPPED)
    dout = load_own(DOUT, row, base, row_ok, q_len - 1, do_t, step, offs_d, D, BD, BM, CHECKED, INDEXED, Q_STEPPED)
    at = (b64 * owners + h64) * q_len + row
    lse = tl.load(LSE + at, mask=row_ok, other=float("-inf"))
    # A row without keys: all its weights come out 0.
    lse2 = tl.where(lse == float("-inf"), float("inf"), allowing_for_rounding(lse) * LOG2E)
    # Weights times the scale instead of the sum, where the dtype has digits enough below.
    SCALED: tl.constexpr = SUMS is None and DQ.dtype.element_ty == tl.bfloat16
    if SCALED:
        lse2 -= log2_scale
    most = log2_scale if SCALED else 0.0
    merge = tl.load(MERGES + h) if MERGE else 0
    if OUT is None:
        delta = -tl.load(MINUS_DELTA + at, mask=row_ok, other=0.0)
    else:
        OUT += tl.multiple_of(b64 * o_b + h64 * o_h, ALIGN)
        out = load_own(OUT, row, base, row_ok, q_len - 1, o_t, step, offs_d, D, BD, BM, CHECKED, INDEXED, Q_STEPPED)
        delta = tl.sum(widened(out) * widened(dout), 1)
        if DLSE is not None:
            # The out of a row without keys is 0.
            delta -= tl.where(lse == float("-inf"), 0.0, tl.load(DLSE + at, mask=row_ok, other=0.0))
        # For the columns, which come after. Every piece of a row finds the same.
        left = tl.where(served & (leaves_delta != 0) & (merge == 0), q_len, 0)
        tl.store(MINUS_DELTA + at, -delta, mask=within(row, left))
    i = row + (k_len - q_len)
    rows = None
    if DROPOUT:
        rows = dropout_rows(SEED, b * owners + h, i)
    segments = None
    if Q_SEGMENTS is not None:
        segments = tl.load(Q_SEGMENTS + b64 * q_len + row, mask=row_ok, other=0)
    if BIAS is not None:
        BIAS += h64 * bias_h + (line * BM + bias_first) // BIAS_BLOCK * bias_row
    if SUMS is not None:
        SUMS += (b64 * owners + h64) * sums_h + (line + sums_first) * sums_row
    acc = tl.zeros([BM, BD], tl.float32)
    for mode in tl.static_range(4):
        if ONE_LOOP == (mode == 3) and (mode == 0 or mode == 3 or (mode == 1 and HAS_BANDS) or (mode == 2 and HAS_BITS)):
            lowest = masked_from if mode == 1 else bits_from if mode == 2 else first
            highest = masked_from if mode == 0 else bits_from if mode == 1 else stop
            acc = query_gradient(
                acc, q, dout, lse2, most, delta, i, rows, segments, K, V, K_INDEX, K_SEGMENTS, INDEX, DETAIL, MASKS, EXCLUDED,
                BIAS, SUMS, b, kv_head, u, tl.maximum(first, lowest), masked_from, bits_from, tl.minimum(stop, highest),
                first_tile, k_t, v_t, k_index_stride, k_len, k_start, k_stop, step, k_per, scale2, inverse_keep,
                threshold, mode, CONTIGUOUS, CHECKED, POSITIONAL, K_STEPPED, BY_TMA, HAS_BANDS, HAS_BITS, EXCLUSIONS,
                DROPOUT, D, BD, BM, BN, WORDS, BIAS_BLOCK, EXACT,
            )  # fmt: skip
    if not SCALED:
        acc *= scale
    limit = tl.where(served, q_len, 0)
    if PART is not None:
        if slot >= 0:
            tl.store(PART + (slot.to(tl.int64) * BM + offs_m)[:, None] * BD + offs_d[None, :], acc)
        limit = tl.where(slot < 0, limit, 0)
    ok = within(row, limit)
    dq = DQ + tl.multiple_of(b64 * dq_b + h64 * dq_h, ALIGN)
    add_rows(dq, acc, row, base, ok, dq_t, step, merge, D, BD, BM, MERGE, INDEXED, Q_STEPPED)
