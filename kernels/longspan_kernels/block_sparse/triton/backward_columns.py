"""Triton kernels of the backward pass: dk and dv, column by column. Triton is imported here: import this file lazily.

Weights are recomputed from the merged log-sum-exp, so the components of a layout are independent, and every sum has one
order, so that two runs give the same bits.

    p = exp(s - lse)    ds = p * (dp - delta)    delta = sum(dout * out) - dlse

Legend: BM x BN the tile of queries x keys, BD the head width D rounded up to a power of two, SHARE query heads a key head.
"""

# ruff: noqa: SIM109, SIM300 (compile-time branches stay statements)
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.backward_sums import add_rows, add_rows_or_keep, is_second, tell_second
from longspan_kernels.block_sparse.triton.common import (
    BAND,
    BITS,
    FULL,
    LN2,
    LOG2E,
    VARYING,
    allowing_for_rounding,
    copied_tile,
    dropout_keeps,
    dropout_rows,
    end_of,
    following,
    included,
    load_tile,
    masked,
    scores_of,
    tokens_of,
    weights,
    within,
    work_item,
)


@triton.jit
def key_gradients(
    dk, dv, k, v, token, k_ok, segments, Q, DOUT, LSE, MINUS_DELTA, Q_INDEX, Q_SEGMENTS, SEED, INDEX, DETAIL, MASKS,
    EXCLUDED, BIAS, b, head, u, batch_head, first, masked_from, bits_from, stop, first_tile, q_stride, do_stride,
    index_stride, q_start, q_len, q_stop, step, q_per, origin, scale2, minus_inverse_scale, inverse_keep, threshold, bias_row,
    bias_first,
    MODE: tl.constexpr, CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr, POSITIONAL: tl.constexpr,
    STEPPED: tl.constexpr, BY_TMA: tl.constexpr, HAS_BANDS: tl.constexpr,
    HAS_BITS: tl.constexpr, EXCLUSIONS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, WORDS: tl.constexpr, BIAS_BLOCK: tl.constexpr, EXACT: tl.constexpr, SERIAL_MASKS: tl.constexpr,
    IN_SUMS: tl.constexpr,
):  # fmt: skip
    """Adds what the entries [first, stop) of a column give to dk / scale and dv. Tiles are transposed: (BN, BM)."""
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
    STAGES: tl.constexpr = 1 if SERIAL_MASKS and (MODE == BAND or MODE == BITS) else None
    for e in tl.range(first, stop, num_stages=STAGES):
        if RUN:
            tile = upcoming + (e - first)
        else:
            tile = upcoming
            upcoming = following(AHEAD, e, stop, CHECKED)
            AHEAD += 1
        detail = 0
        if MODE != FULL:
            detail = tl.load(DETAILS)
            DETAILS += 1
        base, row = tokens_of(Q_INDEX, u, index_stride, tile, q_start, step, q_per, BM, STEPPED)
        row_ok = within(row, q_stop)
        if BY_TMA:
            q = copied_tile(Q, b, head, tile, base, q_start, q_per, BM, BD, STEPPED)
            dout = copied_tile(DOUT, b, head, tile, base, q_start, q_per, BM, BD, STEPPED)
        else:
            q = load_tile(Q, row, base, row_ok, q_stride, step, offs_d, D, BD, BM, LOOK, Q_INDEX is not None, STEPPED)
            dout = load_tile(DOUT, row, base, row_ok, do_stride, step, offs_d, D, BD, BM, LOOK, Q_INDEX is not None, STEPPED)
        # The layout of s wants each of these in many threads. Loaded as one tensor of both they are fetched once and spread,
        # instead of once a thread.
        near = tl.minimum(tl.maximum(row, 0), q_len - 1)
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
        if IN_SUMS:
            begun = tl.broadcast_to((lse * minus_inverse_scale)[None, :], [BN, BM])
            s = tl.dot(k, tl.trans(q), begun, input_precision=PRECISION) * scale2  # (BN, BM)
        else:
            s = scores_of(k, tl.trans(q), EXACT) * scale2 - lse2[None, :]
        if IN_SUMS and SEED is None:
            begun = tl.broadcast_to(minus_delta[None, :], [BN, BM])
            dp = tl.dot(v, tl.trans(dout), begun, input_precision=PRECISION)  # (BN, BM)
        else:
            dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
        if BIAS is not None:
            s += tl.load(BIAS + (tile * BM + bias_first) // BIAS_BLOCK * bias_row) * LOG2E
        p = weights(s, 0.0)
        p = masked(p, 0.0, e, masked_from, bits_from, detail, MASKS, offs_m[None, :], offs_n[:, None], BM, WORDS, MODE,
                   HAS_BANDS, HAS_BITS, True)  # fmt: skip
        if CHECKED:
            p = tl.where(row_ok[None, :], p, 0.0)
        if POSITIONAL:
            p = tl.where(row[None, :] + origin >= token[:, None], p, 0.0)
        if EXCLUDED is not None:
            p = included(p, 0.0, EXCLUDED, row, token, q_len, EXCLUSIONS, True)
        if Q_SEGMENTS is not None:
            same = tl.load(Q_SEGMENTS + row, mask=row_ok, other=0)
            p = tl.where(segments[:, None] == same[None, :], p, 0.0)
        dropped = p
        if SEED is not None:
            drawn = dropout_rows(SEED, batch_head, row + origin)
            survives = dropout_keeps(drawn[None, :], token[:, None], threshold)
            dropped = tl.where(survives, p * inverse_keep, 0.0)
            dp = tl.where(survives, dp * inverse_keep, 0.0)
        if not IN_SUMS or SEED is not None:
            dp += minus_delta[None, :]
        dv = tl.dot(dropped.to(dout.dtype), dout, dv, input_precision=PRECISION)  # (BN, BD)
        ds = p * dp
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)  # (BN, BD)
    return dk, dv


@triton.jit(do_not_specialize=VARYING)
def backward_columns(
    Q, K, V, DOUT, LSE, MINUS_DELTA, DK, DV, LINES, INDEX, DETAIL, MASKS, Q_INDEX, K_INDEX, GROUP, ITEMS, PART_K,
    PART_V, FLAGS, Q_LENGTHS, K_LENGTHS, Q_SEGMENTS, K_SEGMENTS, SEED, EXCLUDED, BIAS, q_b: tl.int64, q_h: tl.int64,
    q_t: tl.int64, k_b: tl.int64, k_h: tl.int64, k_t: tl.int64, v_b: tl.int64, v_h:     tl.int64, v_t: tl.int64,
    do_b: tl.int64, do_h: tl.int64, do_t: tl.int64, dk_b: tl.int64, dk_h: tl.int64, dk_t: tl.int64, dv_b: tl.int64,
    dv_h: tl.int64, dv_t: tl.int64, q_index_stride: tl.int64, k_index_stride: tl.int64, bias_h: tl.int64,
    bias_row: tl.int64, q_len: tl.int32, k_len: tl.int32, q_start: tl.int32, k_start: tl.int32,
    lines: tl.int32, batch: tl.int32, owners:     tl.int32, batch_groups: tl.int32, threshold: tl.int32,
    bias_first: tl.int32, step: tl.int32, q_per: tl.int32, k_per: tl.int32, flags: tl.int32, scale, scale2, inverse_keep,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WORDS: tl.constexpr, SHARE: tl.constexpr,
    CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr, POSITIONAL: tl.constexpr, Q_STEPPED: tl.constexpr, K_STEPPED: tl.constexpr,
    HAS_BANDS: tl.constexpr, HAS_BITS: tl.constexpr, EXCLUSIONS: tl.constexpr, ONE_GROUP: tl.constexpr,
    ONE_LOOP: tl.constexpr, BY_TMA: tl.constexpr, MERGE: tl.constexpr,
    BIAS_BLOCK: tl.constexpr, ALIGN: tl.constexpr, EXACT: tl.constexpr, SERIAL_MASKS: tl.constexpr,
    IN_SUMS: tl.constexpr,
):  # fmt: skip
    b, owner, line, slot, u, served, entries = work_item(ITEMS, LINES, GROUP, owners, lines, batch, batch_groups, ONE_GROUP)
    offs_d = tl.arange(0, BD)
    b64, kv64 = b.to(tl.int64), owner.to(tl.int64)
    q_stop = q_len
    k_stop = k_len
    if Q_LENGTHS is not None:
        q_stop = end_of(Q_LENGTHS, b, q_len)
    if EXCLUDED is not None:
        EXCLUDED += b64 * EXCLUSIONS * k_len
    if K_LENGTHS is not None:
        k_stop = end_of(K_LENGTHS, b, k_len)
    base, token = tokens_of(K_INDEX, u, k_index_stride, line, k_start, step, k_per, BN, K_STEPPED)
    k_ok = within(token, k_stop)
    K += tl.multiple_of(b64 * k_b + kv64 * k_h, ALIGN)
    V += tl.multiple_of(b64 * v_b + kv64 * v_h, ALIGN)
    k = load_tile(K, token, base, k_ok, k_t, step, offs_d, D, BD, BN, True, K_INDEX is not None, K_STEPPED)
    v = load_tile(V, token, base, k_ok, v_t, step, offs_d, D, BD, BN, True, K_INDEX is not None, K_STEPPED)
    segments = None
    if K_SEGMENTS is not None:
        segments = tl.load(K_SEGMENTS + b64 * k_len + token, mask=k_ok, other=0)
        Q_SEGMENTS += b64 * q_len
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    seen = 0
    for share in tl.range(0, SHARE):
        h = owner * SHARE + share
        h64 = h.to(tl.int64)
        u_of = u
        if SHARE > 1:
            # An item is a range of the entries of all the heads that share this key head, one head after another. Queries
            # may have an order for each head; where keys have, each key head has one query head: see backward.py.
            group = tl.load(GROUP + h)
            u_of = tl.maximum(group, 0) + b * batch_groups
            line_at = LINES + (u_of.to(tl.int64) * lines + line) * 8
            start = tl.load(line_at)
            count = tl.where(group < 0, 0, tl.load(line_at + 3) - start)
            masked_from = tl.load(line_at + 1)
            bits_from = tl.load(line_at + 2)
            first = start
            stop = start + count
            if ITEMS is not None:
                first = start + tl.maximum(tl.load(entries) - seen, 0)
                stop = start + tl.minimum(tl.load(entries + 3) - seen, count)
            first_tile = tl.load(INDEX + first, mask=first < stop, other=0)
            seen += count
        else:
            first = tl.load(entries)
            masked_from = tl.load(entries + 1)
            bits_from = tl.load(entries + 2)
            stop = tl.where(served, tl.load(entries + 3), first)
            first_tile = tl.load(entries + 4)
        batch_head = b * (owners * SHARE) + h
        if BY_TMA:
            Q_OF = Q
            DOUT_OF = DOUT
        else:
            Q_OF = Q + tl.multiple_of(b64 * q_b + h64 * q_h, ALIGN)
            DOUT_OF = DOUT + tl.multiple_of(b64 * do_b + h64 * do_h, ALIGN)
        MINUS_DELTA_OF = MINUS_DELTA
        if MINUS_DELTA is None:  # in pairs with lse
            LSE_OF = LSE + batch_head.to(tl.int64) * (2 * q_len)
        else:
            LSE_OF = LSE + batch_head.to(tl.int64) * q_len
            MINUS_DELTA_OF += batch_head.to(tl.int64) * q_len
        BIAS_OF = BIAS
        if BIAS is not None:
            BIAS_OF = BIAS + h64 * bias_h + (line * BN) // BIAS_BLOCK
        for mode in tl.static_range(4):
            if ONE_LOOP == (mode == 3) and (mode == 0 or mode == 3 or (mode == 1 and HAS_BANDS) or (mode == 2 and HAS_BITS)):
                lowest = masked_from if mode == 1 else bits_from if mode == 2 else first
                highest = masked_from if mode == 0 else bits_from if mode == 1 else stop
                begin, end = tl.maximum(first, lowest), tl.minimum(stop, highest)
                if begin < end:
                    dk, dv = key_gradients(
                        dk, dv, k, v, token, k_ok, segments, Q_OF, DOUT_OF, LSE_OF, MINUS_DELTA_OF, Q_INDEX,
                        Q_SEGMENTS, SEED, INDEX, DETAIL, MASKS, EXCLUDED, BIAS_OF, b, h, u_of, batch_head, begin,
                        masked_from, bits_from, end, first_tile, q_t, do_t, q_index_stride, q_start,
                        q_len, q_stop, step, q_per, k_len - q_len, scale2, -1.0 / scale, inverse_keep, threshold, bias_row,
                        bias_first, mode, CONTIGUOUS, CHECKED, POSITIONAL, Q_STEPPED, BY_TMA, HAS_BANDS, HAS_BITS,
                        EXCLUSIONS, D, BD, BM, BN, WORDS, BIAS_BLOCK, EXACT, SERIAL_MASKS, IN_SUMS,
                    )  # fmt: skip
    dk *= scale
    if CHECKED:
        # Keys past the length were computed from zeros; their rows mix with no others.
        dk = tl.where(k_ok[:, None], dk, 0.0)
        dv = tl.where(k_ok[:, None], dv, 0.0)
    dk_at = DK + tl.multiple_of(b64 * dk_b + kv64 * dk_h, ALIGN)
    dv_at = DV + tl.multiple_of(b64 * dv_b + kv64 * dv_h, ALIGN)
    INDEXED: tl.constexpr = K_INDEX is not None
    PAIRED: tl.constexpr = PART_K is not None and PART_K.dtype.element_ty != tl.float32
    if PAIRED:
        written = within(token, k_len)
        add_rows_or_keep(dk_at, PART_K, dk, slot, token, base, written, dk_t, step, D, BD, BN, MERGE, INDEXED, K_STEPPED)
        add_rows_or_keep(dv_at, PART_V, dv, slot, token, base, written, dv_t, step, D, BD, BN, MERGE, INDEXED, K_STEPPED)
    else:
        limit = k_len
        if PART_K is not None:
            if slot >= 0:
                piece = (slot.to(tl.int64) * BN + tl.arange(0, BN))[:, None] * BD + offs_d[None, :]
                tl.store(PART_K + piece, dk)
                tl.store(PART_V + piece, dv)
            limit = tl.where(slot < 0, limit, 0)
        written = within(token, limit)
        adds = 1
        if FLAGS is not None:
            adds = tl.where(is_second(FLAGS, slot, flags), 1, 1 if MERGE else 0)
        ADDS: tl.constexpr = MERGE or FLAGS is not None
        add_rows(dk_at, dk, token, base, written, dk_t, step, adds, D, BD, BN, ADDS, INDEXED, K_STEPPED)
        add_rows(dv_at, dv, token, base, written, dv_t, step, adds, D, BD, BN, ADDS, INDEXED, K_STEPPED)
        if FLAGS is not None:
            tell_second(FLAGS, slot, flags)
