"""Triton kernels of the forward pass. Triton is imported here: import this file lazily.

One program attends from the queries of one row of a component to the key tiles its list names: full tiles, band tiles and
bit-masked tiles in loops of their own, so that only partial tiles pay for a mask. A row that is too long for one program is
cut into pieces, whose results a second kernel merges. Scores are in base 2: exp2(s * scale * log2(e) - m).

Legend: BM x BN the tile, BD the head width D rounded up to a power of two.
"""

# ruff: noqa: SIM102, SIM109, SIM300 (compile-time branches stay statements)
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.common import (
    BAND,
    BITS,
    FULL,
    LN2,
    LOG2E,
    READ_AHEAD,
    VARYING,
    addresses,
    copied_tile,
    dropout_keeps,
    dropout_rows,
    end_of,
    following,
    included,
    load_tile,
    masked,
    quick_log2,
    scores_of,
    tokens_of,
    within,
    work_item,
)


@triton.jit
def attend(
    acc, total, peak, q, i, rows, segments, K, V, K_INDEX, K_SEGMENTS, INDEX, DETAIL, MASKS, EXCLUDED, BIAS, b, kv_head,
    u, first, masked_from, bits_from, stop, first_tile, k_stride, v_stride, index_stride, k_len, k_start, k_stop, step,
    k_per, scale2, threshold, bias_at, MODE: tl.constexpr, CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr,
    POSITIONAL: tl.constexpr, STEPPED: tl.constexpr, BY_TMA: tl.constexpr, HAS_BANDS: tl.constexpr,
    HAS_BITS: tl.constexpr, EXCLUSIONS: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WORDS: tl.constexpr, BIAS_BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Adds the entries [first, stop) of a row to its running (acc, total, peak)."""
    offs_m = tl.arange(0, BM)
    offs_n = tl.arange(0, BN)
    offs_d = tl.arange(0, BD)
    RUN: tl.constexpr = CONTIGUOUS and MODE == FULL
    LOOK: tl.constexpr = CHECKED or MODE != FULL
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
        else:
            k = load_tile(K, token, base, k_ok, k_stride, step, offs_d, D, BD, BN, LOOK, K_INDEX is not None, STEPPED)
        s = scores_of(q, tl.trans(k), EXACT)  # (BM, BN)
        if BIAS is not None:
            s = s * scale2 + tl.load(BIAS + bias_at + (tile * BN) // BIAS_BLOCK) * LOG2E
        s = masked(s, float("-inf"), e, masked_from, bits_from, detail, MASKS, offs_m[:, None], offs_n[None, :], BM, WORDS,
                   MODE,
                   HAS_BANDS, HAS_BITS, False)  # fmt: skip
        if CHECKED:
            s = tl.where(k_ok[None, :], s, float("-inf"))
        if POSITIONAL:
            s = tl.where(i[:, None] >= token[None, :], s, float("-inf"))
        if EXCLUDED is not None:
            s = included(s, float("-inf"), EXCLUDED, i, token, k_len, EXCLUSIONS, False)
        if K_SEGMENTS is not None:
            same = tl.load(K_SEGMENTS + token, mask=k_ok, other=0)
            s = tl.where(segments[:, None] == same[None, :], s, float("-inf"))
        if BIAS is not None:
            new = tl.maximum(peak, tl.max(s, 1))
            origin = tl.where(new == float("-inf"), 0.0, new)
            p = tl.exp2(s - origin[:, None])
            shrink = tl.exp2(peak - origin)
        elif EXACT:
            # The peak before scaling: its product with the scale is rounded, and for scores near 10**10 by hundreds, which a
            # fused multiply-add would leave in every exponent.
            new = tl.maximum(peak, tl.max(s, 1))
            origin = tl.where(new == float("-inf"), 0.0, new)
            p = tl.exp2((s - origin[:, None]) * scale2)
            shrink = tl.exp2((peak - origin) * scale2)
        else:
            new = tl.maximum(peak, tl.max(s, 1) * scale2)
            origin = tl.where(new == float("-inf"), 0.0, new)
            p = tl.exp2(s * scale2 - origin[:, None])
            shrink = tl.exp2(peak - origin)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if DROPOUT:
            p = tl.where(dropout_keeps(rows[:, None], token[None, :], threshold), p, 0.0)
        if BY_TMA:
            v = copied_tile(V, b, kv_head, tile, base, k_start, k_per, BN, BD, STEPPED)
        else:
            v = load_tile(V, token, base, k_ok, v_stride, step, offs_d, D, BD, BN, LOOK, K_INDEX is not None, STEPPED)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee" if EXACT else "tf32")
        peak = new
    return acc, total, peak


@triton.jit
def store_rows(
    OUT, LSE, out, lse2, token, base, ok, out_stride, step, merge, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr,
    MERGE: tl.constexpr, INDEXED: tl.constexpr, STEPPED: tl.constexpr,
):  # fmt: skip
    """Writes rows, or merges them into what earlier components wrote. `lse2` is in base 2."""
    offs_d = tl.arange(0, BD)
    at = addresses(OUT, token, base, out_stride, step, offs_d, B, INDEXED, STEPPED)
    keep = ok[:, None] & (offs_d < D)[None, :]
    if MERGE:
        if merge != 0:
            old = tl.load(LSE + token, mask=ok, other=float("-inf")) * LOG2E
            peak = tl.maximum(old, lse2)
            origin = tl.where(peak == float("-inf"), 0.0, peak)
            theirs = tl.exp2(old - origin)
            ours = tl.exp2(lse2 - origin)
            both = theirs + ours
            share = 1.0 / tl.where(both == 0.0, 1.0, both)
            before = tl.load(at, mask=keep, other=0.0).to(tl.float32)
            out = out * (ours * share)[:, None] + before * (theirs * share)[:, None]
            lse2 = tl.where(peak == float("-inf"), peak, origin + tl.log2(tl.where(both == 0.0, 1.0, both)))
    tl.store(at, out.to(OUT.dtype.element_ty), mask=keep)
    tl.store(LSE + token, lse2 * LN2, mask=ok)


@triton.jit(do_not_specialize=VARYING)
def forward_rows(
    Q, K, V, OUT, LSE, LINES, INDEX, DETAIL, MASKS, Q_INDEX, K_INDEX, GROUP, MERGES, ITEMS, PART, PART_LSE, Q_LENGTHS,
    K_LENGTHS, Q_SEGMENTS, K_SEGMENTS, SEED, EXCLUDED, BIAS, q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, k_b: tl.int64,
    k_h: tl.int64, k_t: tl.int64, v_b: tl.int64, v_h:     tl.int64, v_t: tl.int64, o_b: tl.int64, o_h: tl.int64,
    o_t: tl.int64, q_index_stride: tl.int64, k_index_stride: tl.int64, bias_h: tl.int64, bias_row: tl.int64,
    q_len: tl.int32, k_len: tl.int32, q_start: tl.int32, k_start: tl.int32, lines: tl.int32, batch: tl.int32,
    owners:     tl.int32, batch_groups: tl.int32, threshold: tl.int32, bias_first: tl.int32, step: tl.int32,
    q_per: tl.int32, k_per: tl.int32, scale2, inverse_keep, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, WORDS: tl.constexpr, SHARE: tl.constexpr, CONTIGUOUS: tl.constexpr, CHECKED: tl.constexpr,
    POSITIONAL: tl.constexpr, Q_STEPPED: tl.constexpr, K_STEPPED: tl.constexpr, HAS_BANDS: tl.constexpr, HAS_BITS: tl.constexpr,
    EXCLUSIONS: tl.constexpr, ONE_GROUP: tl.constexpr, ONE_LOOP: tl.constexpr, BY_TMA: tl.constexpr,
    DROPOUT: tl.constexpr, MERGE: tl.constexpr, BIAS_BLOCK: tl.constexpr, ALIGN: tl.constexpr, EXACT: tl.constexpr,
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
    q = load_tile(Q, row, base, row_ok, q_t, step, offs_d, D, BD, BM, True, Q_INDEX is not None, Q_STEPPED)  # (BM, BD)
    i = row + (k_len - q_len)
    rows = None
    if DROPOUT:
        rows = dropout_rows(SEED, b * owners + h, i)
    segments = None
    if Q_SEGMENTS is not None:
        segments = tl.load(Q_SEGMENTS + b64 * q_len + row, mask=row_ok, other=0)
    bias_at = tl.zeros([], tl.int64)
    if BIAS is not None:
        # Tiles lie inside bias blocks, so the first place of this one stands for all.
        bias_at = h64 * bias_h + (line * BM + bias_first) // BIAS_BLOCK * bias_row
    merge = tl.load(MERGES + h) if MERGE else 0
    out_at = OUT + tl.multiple_of(b64 * o_b + h64 * o_h, ALIGN)
    lse_at = LSE + (b64 * owners + h64) * q_len
    limit = tl.where(served, q_len, 0)
    acc = tl.zeros([BM, BD], tl.float32)
    total = tl.zeros([BM], tl.float32)
    peak = tl.full([BM], float("-inf"), tl.float32)
    if ONE_LOOP or not (HAS_BANDS or HAS_BITS):
        if stop <= first:
            # Told here that its loop has entries, the compiler keeps no second set of sums for when it is skipped.
            store_rows(out_at, lse_at, acc, peak, row, base, within(row, limit), o_t, step, merge, D, BD, BM, MERGE,
                       Q_INDEX is not None, Q_STEPPED)  # fmt: skip
            return
    for mode in tl.static_range(4):
        if ONE_LOOP == (mode == 3) and (mode == 0 or mode == 3 or (mode == 1 and HAS_BANDS) or (mode == 2 and HAS_BITS)):
            lowest = masked_from if mode == 1 else bits_from if mode == 2 else first
            highest = masked_from if mode == 0 else bits_from if mode == 1 else stop
            acc, total, peak = attend(
                acc, total, peak, q, i, rows, segments, K, V, K_INDEX, K_SEGMENTS, INDEX, DETAIL, MASKS, EXCLUDED, BIAS,
                b, kv_head, u, tl.maximum(first, lowest), masked_from, bits_from, tl.minimum(stop, highest), first_tile,
                k_t, v_t, k_index_stride, k_len, k_start, k_stop, step, k_per, scale2, threshold, bias_at, mode,
                CONTIGUOUS, CHECKED, POSITIONAL, K_STEPPED, BY_TMA, HAS_BANDS, HAS_BITS, EXCLUSIONS, DROPOUT, D, BD, BM,
                BN, WORDS, BIAS_BLOCK, EXACT,
            )  # fmt: skip
    # A row without keys, and one past the length, whose scores were computed from zeros.
    alive = row_ok & (total > 0.0)
    total = tl.where(alive, total, 1.0)
    if EXACT and BIAS is None:
        peak *= scale2
    if EXACT:
        digits = tl.log2(total)
        share = inverse_keep / total
    else:
        digits = quick_log2(total)
        share = inverse_keep * tl.exp2(-digits)
    lse2 = tl.where(alive, peak + digits, float("-inf"))
    out = acc * tl.where(alive, share, 0.0)[:, None]
    if PART is not None:
        if slot >= 0:
            at = slot.to(tl.int64) * BM + offs_m
            tl.store(PART + at[:, None] * BD + offs_d[None, :], out)
            tl.store(PART_LSE + at, lse2)
        limit = tl.where(slot < 0, limit, 0)
    ok = within(row, limit)
    store_rows(out_at, lse_at, out, lse2, row, base, ok, o_t, step, merge, D, BD, BM, MERGE, Q_INDEX is not None, Q_STEPPED)


@triton.jit(do_not_specialize=VARYING)
def merge_pieces(
    OUT, LSE, PART, PART_LSE, SPLITS, GROUP, MERGES, Q_INDEX, o_b: tl.int64, o_h: tl.int64, o_t: tl.int64,
    q_index_stride: tl.int64, q_len: tl.int32, q_start: tl.int32, batch: tl.int32, owners: tl.int32,
    batch_groups: tl.int32, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BX: tl.constexpr, MERGE: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Merges the pieces of one cut row, in their order: BX of its BM queries a program."""
    PARTS: tl.constexpr = BM // BX
    pid = tl.program_id(0)
    part = pid % PARTS
    pid = pid // PARTS
    b = pid % batch
    at = SPLITS + (pid // batch).to(tl.int64) * 4
    h = tl.load(at)
    line = tl.load(at + 1)
    slot = tl.load(at + 2)
    pieces = tl.load(at + 3)
    offs_m = part * BX + tl.arange(0, BX)
    offs_d = tl.arange(0, BD)
    acc = tl.zeros([BX, BD], tl.float32)
    total = tl.zeros([BX], tl.float32)
    peak = tl.full([BX], float("-inf"), tl.float32)
    for piece in tl.range(0, pieces, num_stages=READ_AHEAD):
        place = ((slot + piece) * batch + b).to(tl.int64) * BM + offs_m
        lse2 = tl.load(PART_LSE + place)
        out = tl.load(PART + place[:, None] * BD + offs_d[None, :])
        new = tl.maximum(peak, lse2)
        origin = tl.where(new == float("-inf"), 0.0, new)
        shrink = tl.exp2(peak - origin)
        weight = tl.exp2(lse2 - origin)
        acc = acc * shrink[:, None] + out * weight[:, None]
        total = total * shrink + weight
        peak = new
    alive = total > 0.0
    total = tl.where(alive, total, 1.0)
    lse2 = tl.where(alive, peak + tl.log2(total), float("-inf"))
    u = (tl.load(GROUP + h) + b * batch_groups).to(tl.int64)
    base, row = tokens_of(Q_INDEX, u, q_index_stride, line * PARTS + part, q_start, 1, 1, BX, False)
    merge = tl.load(MERGES + h) if MERGE else 0
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    ok = within(row, q_len)
    out_at = OUT + tl.multiple_of(b64 * o_b + h64 * o_h, ALIGN)
    store_rows(out_at, LSE + (b64 * owners + h64) * q_len, acc / total[:, None], lse2, row, base, ok, o_t, 1, merge, D, BD, BX,
               MERGE, Q_INDEX is not None, False)  # fmt: skip
