"""Triton kernels of the backward pass. Triton is imported here: import this file lazily.

Weights are recomputed from the merged log-sum-exp, so the components of a layout are independent. dq runs over rows, dk and
dv over columns; every sum has one order, so two runs give the same bits.

    p = exp(s - lse)    ds = p * (dp - delta)    delta = sum(dout * out) - dlse

Legend: BM x BN the tile of queries x keys, BD the head width D rounded up to a power of two, SHARE query heads a key head.
"""

# ruff: noqa: SIM102 (branches on compile-time constants stay statements)
from __future__ import annotations

import triton
import triton.language as tl

from .tile_math import (
    FULL,
    LOG2E,
    VARYING,
    dropout_keeps,
    dropout_rows,
    line_bounds,
    load_tile,
    pattern_keeps,
    tokens_of,
    work_item,
)


@triton.jit(do_not_specialize=VARYING)
def prepare_rows(
    OUT, DOUT, LSE, DLSE, LSE2, DELTA,
    o_b: tl.int64, o_h: tl.int64, o_t: tl.int64, do_b: tl.int64, do_h: tl.int64, do_t: tl.int64, q_len: tl.int32,
    owners: tl.int32, lines: tl.int32,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta, and lse in base 2; +inf for a row without keys, so that all its weights come out 0."""
    pid = tl.program_id(0)
    line = pid % lines
    batch_head = (pid // lines).to(tl.int64)
    b, h = batch_head // owners, batch_head % owners
    row = line * BM + tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    ok = row < q_len
    keep = ok[:, None] & (offs_d < D)[None, :]
    row64 = row.to(tl.int64)[:, None]
    out = tl.load(OUT + b * o_b + h * o_h + row64 * o_t + offs_d[None, :], mask=keep, other=0.0).to(tl.float32)
    dout = tl.load(DOUT + b * do_b + h * do_h + row64 * do_t + offs_d[None, :], mask=keep, other=0.0).to(tl.float32)
    delta = tl.sum(out * dout, 1)
    at = batch_head * q_len + row
    if DLSE is not None:
        delta -= tl.load(DLSE + at, mask=ok, other=0.0)
    lse = tl.load(LSE + at, mask=ok, other=float("-inf"))
    empty = lse == float("-inf")
    tl.store(DELTA + at, tl.where(empty, 0.0, delta), mask=ok)
    tl.store(LSE2 + at, tl.where(empty, float("inf"), lse * LOG2E), mask=ok)


@triton.jit
def query_gradient(
    acc, q, dout, lse2, delta, i, rows, segments, K, V, K_INDEX, K_SEGMENTS, INDEX, DETAIL, MASKS, BIAS, SUMS,
    u, start, first, stop, k_stride, v_stride, index_stride, k_start, k_stop, step, k_per, scale2, inverse_keep,
    threshold,
    MODE: tl.constexpr, CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr, POSITIONAL: tl.constexpr,
    STEPPED: tl.constexpr,
    DROPOUT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WORDS: tl.constexpr, BIAS_BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Adds what the entries [first, stop) of a row give to dq / scale."""
    offs_m = tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, BD)
    RUN: tl.constexpr = CONTIGUOUS and MODE == FULL
    LOOK: tl.constexpr = CHECKED or MODE != FULL
    PRECISION: tl.constexpr = "ieee" if EXACT else "tf32"
    upcoming = tl.load(INDEX + start + (0 if RUN else first), mask=stop > first, other=0)
    for e in tl.range(first, stop):
        if RUN:
            block = upcoming + e
        else:
            # Read one entry ahead: the loads of keys wait for this number.
            block = upcoming
            upcoming = tl.load(INDEX + start + e + 1, mask=e + 1 < stop, other=0)
        detail = 0
        if MODE != FULL:
            detail = tl.load(DETAIL + start + e)
        base, token = tokens_of(K_INDEX, u, index_stride, block, k_start, step, k_per, BN, STEPPED)
        k_ok = (token >= 0) & (token < k_stop)
        k = load_tile(K, token, base, k_ok, k_stride, step, offs_d, D, BD, BN, LOOK, K_INDEX is not None, STEPPED)
        v = load_tile(V, token, base, k_ok, v_stride, step, offs_d, D, BD, BN, LOOK, K_INDEX is not None, STEPPED)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2  # (BM, BN)
        if BIAS is not None:
            s += tl.load(BIAS + (block * BN) // BIAS_BLOCK) * LOG2E
        p = tl.exp2(s - lse2[:, None])
        if MODE != FULL:
            keeps = pattern_keeps(detail, MASKS, offs_m[:, None], offs_n[None, :], BM, WORDS, MODE)
            p = tl.where(keeps, p, 0.0)
        if CHECKED:
            p = tl.where(k_ok[None, :], p, 0.0)
        if POSITIONAL:
            p = tl.where(i[:, None] >= token[None, :], p, 0.0)
        if K_SEGMENTS is not None:
            same = tl.load(K_SEGMENTS + token, mask=k_ok, other=0)
            p = tl.where(segments[:, None] == same[None, :], p, 0.0)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)  # (BM, BN)
        if DROPOUT:
            dp = tl.where(dropout_keeps(rows[:, None], token[None, :], threshold), dp * inverse_keep, 0.0)
        ds = p * (dp - delta[:, None])
        if SUMS is not None:
            tl.store(SUMS + block, tl.sum(tl.sum(ds, 1), 0))
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)  # (BM, BD)
    return acc


@triton.jit(do_not_specialize=VARYING)
def backward_rows(
    Q, K, V, DOUT, LSE2, DELTA, DQ, LINES, INDEX, DETAIL, MASKS, Q_INDEX, K_INDEX, GROUP, MERGES, ITEMS, PART,
    Q_LENGTHS, K_LENGTHS, Q_SEGMENTS, K_SEGMENTS, SEED, BIAS, SUMS,
    q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, k_b: tl.int64, k_h: tl.int64, k_t: tl.int64, v_b: tl.int64, v_h:
    tl.int64, v_t: tl.int64,
    do_b: tl.int64, do_h: tl.int64, do_t: tl.int64, dq_b: tl.int64, dq_h: tl.int64, dq_t: tl.int64, q_index_stride:
    tl.int64,
    k_index_stride: tl.int64, bias_h: tl.int64, bias_row: tl.int64, sums_h: tl.int64, sums_row: tl.int64,
    q_len: tl.int32, k_len: tl.int32, q_start: tl.int32, k_start: tl.int32, lines: tl.int32, batch: tl.int32, owners:
    tl.int32,
    batch_groups: tl.int32, threshold: tl.int32, bias_first: tl.int32, sums_first: tl.int32, step: tl.int32,
    q_per: tl.int32, k_per: tl.int32, scale, scale2,
    inverse_keep,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WORDS: tl.constexpr, SHARE: tl.constexpr,
    CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr, POSITIONAL: tl.constexpr, STEPPED: tl.constexpr,
    HAS_BANDS: tl.constexpr, HAS_BITS: tl.constexpr,
    DROPOUT: tl.constexpr, MERGE: tl.constexpr, BIAS_BLOCK: tl.constexpr, ALIGN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    b, h, line, first, stop, slot = work_item(ITEMS, owners, lines, batch)
    group = tl.load(GROUP + h)
    u = tl.maximum(group, 0) + b * batch_groups
    start, full, band, count = line_bounds(LINES, u, lines, line)
    stop = tl.where(group < 0, 0, tl.minimum(stop, count))
    offs_m = tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    kv64 = h64 // SHARE
    Q += tl.multiple_of(b64 * q_b + h64 * q_h, ALIGN)
    DOUT += tl.multiple_of(b64 * do_b + h64 * do_h, ALIGN)
    K += tl.multiple_of(b64 * k_b + kv64 * k_h, ALIGN)
    V += tl.multiple_of(b64 * v_b + kv64 * v_h, ALIGN)
    q_stop = q_len
    k_stop = k_len
    if Q_LENGTHS is not None:
        q_stop = tl.minimum(q_stop, tl.load(Q_LENGTHS + b))
    if K_LENGTHS is not None:
        k_stop = tl.minimum(k_stop, tl.load(K_LENGTHS + b))
    if K_SEGMENTS is not None:
        K_SEGMENTS += b64 * k_len
    base, row = tokens_of(Q_INDEX, u, q_index_stride, line, q_start, step, q_per, BM, STEPPED)
    row_ok = (row >= 0) & (row < q_stop)
    q = load_tile(Q, row, base, row_ok, q_t, step, offs_d, D, BD, BM, True, Q_INDEX is not None, STEPPED)
    dout = load_tile(DOUT, row, base, row_ok, do_t, step, offs_d, D, BD, BM, True, Q_INDEX is not None, STEPPED)
    at = (b64 * owners + h64) * q_len + row
    lse2 = tl.load(LSE2 + at, mask=row_ok, other=float("inf"))
    delta = tl.load(DELTA + at, mask=row_ok, other=0.0)
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
    for mode in tl.static_range(3):
        if mode == 0 or (mode == 1 and HAS_BANDS) or (mode == 2 and HAS_BITS):
            lowest = 0 if mode == 0 else full if mode == 1 else band
            highest = full if mode == 0 else band if mode == 1 else count
            acc = query_gradient(
                acc, q, dout, lse2, delta, i, rows, segments, K, V, K_INDEX, K_SEGMENTS, INDEX, DETAIL, MASKS, BIAS,
                SUMS,
                u, start, tl.maximum(first, lowest), tl.minimum(stop, highest), k_t, v_t, k_index_stride, k_start,
                k_stop,
                step, k_per, scale2, inverse_keep, threshold, mode, CONTIGUOUS, CHECKED, POSITIONAL, STEPPED, DROPOUT,
                D,
                BD, BM, BN, WORDS, BIAS_BLOCK, EXACT,
            )  # fmt: skip
    acc *= scale
    limit = tl.where(group < 0, 0, q_len)
    if PART is not None:
        if slot >= 0:
            tl.store(PART + (slot.to(tl.int64) * BM + offs_m)[:, None] * BD + offs_d[None, :], acc)
        limit = tl.where(slot < 0, limit, 0)
    merge = tl.load(MERGES + h) if MERGE else 0
    add_rows(DQ + b64 * dq_b + h64 * dq_h, acc, row, (row >= 0) & (row < limit), dq_t, merge, D, BD, MERGE)


@triton.jit
def add_rows(X, value, token, ok, stride, merge, D: tl.constexpr, BD: tl.constexpr, MERGE: tl.constexpr):
    """Writes rows of a gradient, or adds them to what earlier components wrote."""
    offs_d = tl.arange(0, BD)
    at = X + token.to(tl.int64)[:, None] * stride + offs_d[None, :]
    keep = ok[:, None] & (offs_d < D)[None, :]
    if MERGE:
        if merge != 0:
            value += tl.load(at, mask=keep, other=0.0).to(tl.float32)
    tl.store(at, value.to(X.dtype.element_ty), mask=keep)


@triton.jit
def key_gradients(
    dk, dv, k, v, token, k_ok, segments, Q, DOUT, LSE2, DELTA, Q_INDEX, Q_SEGMENTS, SEED, INDEX, DETAIL, MASKS,
    BIAS,
    u, batch_head, start, first, stop, q_stride, do_stride, index_stride, q_start, q_stop, step, q_per, origin, scale2,
    inverse_keep,
    threshold, bias_row, bias_first,
    MODE: tl.constexpr, CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr, POSITIONAL: tl.constexpr,
    STEPPED: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WORDS: tl.constexpr, BIAS_BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Adds what the entries [first, stop) of a column give to dk / scale and dv. Tiles are transposed: (BN, BM)."""
    offs_m = tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, BD)
    RUN: tl.constexpr = CONTIGUOUS and MODE == FULL
    LOOK: tl.constexpr = CHECKED or MODE != FULL
    PRECISION: tl.constexpr = "ieee" if EXACT else "tf32"
    upcoming = tl.load(INDEX + start + (0 if RUN else first), mask=stop > first, other=0)
    for e in tl.range(first, stop):
        if RUN:
            block = upcoming + e
        else:
            block = upcoming
            upcoming = tl.load(INDEX + start + e + 1, mask=e + 1 < stop, other=0)
        detail = 0
        if MODE != FULL:
            detail = tl.load(DETAIL + start + e)
        base, row = tokens_of(Q_INDEX, u, index_stride, block, q_start, step, q_per, BM, STEPPED)
        row_ok = (row >= 0) & (row < q_stop)
        q = load_tile(Q, row, base, row_ok, q_stride, step, offs_d, D, BD, BM, LOOK, Q_INDEX is not None, STEPPED)
        dout = load_tile(DOUT, row, base, row_ok, do_stride, step, offs_d, D, BD, BM, LOOK, Q_INDEX is not None, STEPPED)
        if LOOK:
            lse2 = tl.load(LSE2 + row, mask=row_ok, other=float("inf"))
            delta = tl.load(DELTA + row, mask=row_ok, other=0.0)
        else:
            lse2 = tl.load(LSE2 + row)
            delta = tl.load(DELTA + row)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2  # (BN, BM)
        if BIAS is not None:
            s += tl.load(BIAS + (block * BM + bias_first) // BIAS_BLOCK * bias_row) * LOG2E
        p = tl.exp2(s - lse2[None, :])
        if MODE != FULL:
            keeps = pattern_keeps(detail, MASKS, offs_m[None, :], offs_n[:, None], BM, WORDS, MODE)
            p = tl.where(keeps, p, 0.0)
        if POSITIONAL:
            p = tl.where(row[None, :] + origin >= token[:, None], p, 0.0)
        if Q_SEGMENTS is not None:
            same = tl.load(Q_SEGMENTS + row, mask=row_ok, other=0)
            p = tl.where(segments[:, None] == same[None, :], p, 0.0)
        dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)  # (BN, BM)
        dropped = p
        if SEED is not None:
            rows = dropout_rows(SEED, batch_head, row + origin)
            survives = dropout_keeps(rows[None, :], token[:, None], threshold)
            dropped = tl.where(survives, p * inverse_keep, 0.0)
            dp = tl.where(survives, dp * inverse_keep, 0.0)
        dv = tl.dot(dropped.to(dout.dtype), dout, dv, input_precision=PRECISION)  # (BN, BD)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)  # (BN, BD)
    return dk, dv


@triton.jit(do_not_specialize=VARYING)
def backward_columns(
    Q, K, V, DOUT, LSE2, DELTA, DK, DV, LINES, INDEX, DETAIL, MASKS, Q_INDEX, K_INDEX, GROUP, ITEMS, PART_K,
    PART_V,
    Q_LENGTHS, K_LENGTHS, Q_SEGMENTS, K_SEGMENTS, SEED, BIAS,
    q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, k_b: tl.int64, k_h: tl.int64, k_t: tl.int64, v_b: tl.int64, v_h:
    tl.int64, v_t: tl.int64,
    do_b: tl.int64, do_h: tl.int64, do_t: tl.int64, dk_b: tl.int64, dk_h: tl.int64, dk_t: tl.int64, dv_b: tl.int64,
    dv_h: tl.int64, dv_t: tl.int64,
    q_index_stride: tl.int64, k_index_stride: tl.int64, bias_h: tl.int64, bias_row: tl.int64,
    q_len: tl.int32, k_len: tl.int32, q_start: tl.int32, k_start: tl.int32, lines: tl.int32, batch: tl.int32, owners:
    tl.int32,
    batch_groups: tl.int32, threshold: tl.int32, bias_first: tl.int32, step: tl.int32, q_per: tl.int32,
    k_per: tl.int32, scale, scale2, inverse_keep,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WORDS: tl.constexpr, SHARE: tl.constexpr,
    CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr, POSITIONAL: tl.constexpr, STEPPED: tl.constexpr,
    HAS_BANDS: tl.constexpr, HAS_BITS: tl.constexpr,
    MERGE: tl.constexpr, BIAS_BLOCK: tl.constexpr, ALIGN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    b, owner, line, item_first, item_stop, slot = work_item(ITEMS, owners, lines, batch)
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, BD)
    b64, kv64 = b.to(tl.int64), owner.to(tl.int64)
    q_stop = q_len
    k_stop = k_len
    if Q_LENGTHS is not None:
        q_stop = tl.minimum(q_stop, tl.load(Q_LENGTHS + b))
    if K_LENGTHS is not None:
        k_stop = tl.minimum(k_stop, tl.load(K_LENGTHS + b))
    # Where orders differ by head each key head has one query head, so the first stands for all.
    u = tl.maximum(tl.load(GROUP + owner * SHARE), 0) + b * batch_groups
    base, token = tokens_of(K_INDEX, u, k_index_stride, line, k_start, step, k_per, BN, STEPPED)
    k_ok = (token >= 0) & (token < k_stop)
    K += tl.multiple_of(b64 * k_b + kv64 * k_h, ALIGN)
    V += tl.multiple_of(b64 * v_b + kv64 * v_h, ALIGN)
    k = load_tile(K, token, base, k_ok, k_t, step, offs_d, D, BD, BN, True, K_INDEX is not None, STEPPED)
    v = load_tile(V, token, base, k_ok, v_t, step, offs_d, D, BD, BN, True, K_INDEX is not None, STEPPED)
    segments = None
    if K_SEGMENTS is not None:
        segments = tl.load(K_SEGMENTS + b64 * k_len + token, mask=k_ok, other=0)
        Q_SEGMENTS += b64 * q_len
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    seen = 0
    for share in tl.range(0, SHARE):
        # An item is a range of the entries of all the heads that share this key head, one head after another.
        h = owner * SHARE + share
        h64 = h.to(tl.int64)
        group = tl.load(GROUP + h)
        u = tl.maximum(group, 0) + b * batch_groups
        start, full, band, count = line_bounds(LINES, u, lines, line)
        count = tl.where(group < 0, 0, count)
        first = tl.maximum(item_first - seen, 0)
        stop = tl.minimum(item_stop - seen, count)
        seen += count
        batch_head = b * (owners * SHARE) + h
        Q_OF = Q + tl.multiple_of(b64 * q_b + h64 * q_h, ALIGN)
        DOUT_OF = DOUT + tl.multiple_of(b64 * do_b + h64 * do_h, ALIGN)
        LSE2_OF = LSE2 + batch_head.to(tl.int64) * q_len
        DELTA_OF = DELTA + batch_head.to(tl.int64) * q_len
        BIAS_OF = BIAS
        if BIAS is not None:
            BIAS_OF = BIAS + h64 * bias_h + (line * BN) // BIAS_BLOCK
        for mode in tl.static_range(3):
            if mode == 0 or (mode == 1 and HAS_BANDS) or (mode == 2 and HAS_BITS):
                lowest = 0 if mode == 0 else full if mode == 1 else band
                highest = full if mode == 0 else band if mode == 1 else count
                dk, dv = key_gradients(
                    dk, dv, k, v, token, k_ok, segments, Q_OF, DOUT_OF, LSE2_OF, DELTA_OF, Q_INDEX, Q_SEGMENTS, SEED,
                    INDEX, DETAIL, MASKS, BIAS_OF, u, batch_head, start, tl.maximum(first, lowest),
                    tl.minimum(stop, highest), q_t, do_t, q_index_stride, q_start, q_stop, step, q_per, k_len - q_len,
                    scale2, inverse_keep, threshold, bias_row, bias_first, mode, CONTIGUOUS, CHECKED, POSITIONAL,
                    STEPPED,
                    D, BD, BM, BN, WORDS, BIAS_BLOCK, EXACT,
                )  # fmt: skip
    # Keys past the length were computed from zeros; their rows mix with no others.
    dk = tl.where(k_ok[:, None], dk * scale, 0.0)
    dv = tl.where(k_ok[:, None], dv, 0.0)
    limit = k_len
    if PART_K is not None:
        if slot >= 0:
            at = (slot.to(tl.int64) * BN + offs_n)[:, None] * BD + offs_d[None, :]
            tl.store(PART_K + at, dk)
            tl.store(PART_V + at, dv)
        limit = tl.where(slot < 0, limit, 0)
    written = (token >= 0) & (token < limit)
    add_rows(DK + b64 * dk_b + kv64 * dk_h, dk, token, written, dk_t, 1, D, BD, MERGE)
    add_rows(DV + b64 * dv_b + kv64 * dv_h, dv, token, written, dv_t, 1, D, BD, MERGE)


@triton.jit(do_not_specialize=VARYING)
def add_pieces(
    X, PART, SPLITS, GROUP, MERGES, X_INDEX, x_b: tl.int64, x_h: tl.int64, x_t: tl.int64, index_stride: tl.int64,
    x_len: tl.int32, x_start: tl.int32, batch: tl.int32, batch_groups: tl.int32,
    D: tl.constexpr, BD: tl.constexpr, BX: tl.constexpr, SHARE: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    """Adds up the pieces of one split line, in their order."""
    pid = tl.program_id(0)
    b = pid % batch
    at = SPLITS + (pid // batch).to(tl.int64) * 4
    owner = tl.load(at)
    line = tl.load(at + 1)
    slot = tl.load(at + 2)
    pieces = tl.load(at + 3)
    offs_x = tl.arange(0, BX)
    offs_d = tl.arange(0, BD)
    acc = tl.zeros([BX, BD], tl.float32)
    for piece in tl.range(0, pieces):
        place = ((slot + piece) * batch + b).to(tl.int64) * BX + offs_x
        acc += tl.load(PART + place[:, None] * BD + offs_d[None, :])
    u = tl.maximum(tl.load(GROUP + owner * SHARE), 0) + b * batch_groups
    _, token = tokens_of(X_INDEX, u, index_stride, line, x_start, 1, 1, BX, False)
    merge = 1
    if MERGES is not None:
        merge = tl.load(MERGES + owner)
    add_rows(X + b.to(tl.int64) * x_b + owner.to(tl.int64) * x_h, acc, token, (token >= 0) & (token < x_len), x_t,
    merge,
             D, BD, MERGE)  # fmt: skip
