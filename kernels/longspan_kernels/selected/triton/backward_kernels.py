"""Triton kernels of selected attention's backward pass: gradients of a block's keys and values, and parts of the queries'.

    p = exp(s - lse)    ds = p * (dp - delta)    delta = sum(dout * out) - dlse

Every sum has one order, so that two runs give the same bits. Legend: see common.py. PART [pickers of the launch, T, N, GC, D]
holds what each pick adds to dq / scale; PARTIALS [pickers, runs, 2, SIZE, D] float32 holds
those of lists that several programs work on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.common import READ_AHEAD
from longspan_kernels.selected.triton.common import (
    LOG2E,
    VARYING,
    elements,
    from_full,
    live_pairs,
    of_row,
    queries_of,
    rows_at,
    sees_all,
    served,
    store_rows,
    survivors,
    tokens_of,
    whole_rows_at,
    work_of,
)


@triton.jit(do_not_specialize=VARYING)
def row_numbers(
    OUT,
    DOUT,
    LSE,
    DLSE,
    ROWS,
    do_b: tl.int64,
    do_h: tl.int64,
    do_t: tl.int64,
    length: tl.int32,
    tiles: tl.int32,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """ROWS [B, H, T, 2]: lse in base 2 and delta of each row, side by side, so that one gather brings both."""
    pid = tl.program_id(0)
    list_row = pid // tiles
    token = pid % tiles * BM + tl.arange(0, BM)
    exists = token < length
    row = list_row.to(tl.int64) * length + token
    lse = tl.load(LSE + row, mask=exists, other=float("-inf"))
    some = exists & (lse > float("-inf"))  # what no query sees may be NaN
    out = rows_at(OUT, of_row(row, D), some, D, BD).to(tl.float32)
    of_head = (list_row // HEADS).to(tl.int64) * do_b + (list_row % HEADS).to(tl.int64) * do_h
    dout = rows_at(DOUT, of_head + token.to(tl.int64) * do_t, some, D, BD).to(tl.float32)
    delta = tl.sum(out * dout, 1)
    if DLSE is not None:
        delta -= tl.load(DLSE + row, mask=some, other=0.0)
    # A row without keys has no weights.
    tl.store(ROWS + 2 * row, tl.where(some, lse * LOG2E, float("inf")), mask=exists)
    tl.store(ROWS + 2 * row + 1, delta, mask=exists)


@triton.jit
def numbers_of(ROWS, row):
    """(lse in base 2, delta) of rows, loaded as one tensor."""
    return tl.split(tl.load(ROWS + 2 * row[:, None] + tl.arange(0, 2)[None, :]))


@triton.jit
def gradients_of(DOUT, ROWS, exists, token, h, length, q_h, q_t, D: tl.constexpr, BD: tl.constexpr):
    """(lse in base 2, delta, rows of dout [BM, BD]) of gathered queries."""
    lse2, delta = numbers_of(ROWS, h.to(tl.int64) * length + token)
    # What reaches a row without keys may be NaN, which a weight of 0 would not silence.
    some = exists & (lse2 < float("inf"))
    return lse2, delta, rows_at(DOUT, h.to(tl.int64) * q_h + token.to(tl.int64) * q_t, some, D, BD)


@triton.jit
def of_sequence(Q, DOUT, K, V, ROWS, LENGTHS, b, p, block, length, q_b, kv_b, kv_h, C: tl.constexpr):
    """Pointers to the queries of sequence b, to the keys and values of its lists p, to its row numbers; the end of a block."""
    b64 = b.to(tl.int64)
    end = tl.minimum(tokens_of(LENGTHS, b, length), (block + 1) * C.SIZE)
    Q += elements(b64 * q_b, C.D)
    DOUT += elements(b64 * q_b, C.D)
    of_keys = elements(b64 * kv_b + (p // C.REPEAT).to(tl.int64) * kv_h, C.D)
    return Q, DOUT, K + of_keys, V + of_keys, ROWS + b64 * (C.P * C.G) * length * 2, end


@triton.jit
def store_or_add(X, x, mask, ADD: tl.constexpr):
    if ADD:
        x += tl.load(X, mask=mask, other=0.0)
    tl.store(X, x.to(X.dtype.element_ty), mask=mask)


@triton.jit
def differentiate_keys(
    dk, dv, k, v, Q, DOUT, ROWS, ORDER, SEGMENTS, SEED, PART, first, last, stop, key, end, list_row, b, p, u, length, q_h, q_t,
    first_head, threshold, scale2, C: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of keys and the queries of a list from place `first` to `last`, tile after tile; queries stop at `stop`."""
    D: tl.constexpr = C.D
    BD: tl.constexpr = C.BD
    # Masked tiles are few where most tiles have all their pairs, and buffers of their own would leave those less room.
    STAGES: tl.constexpr = 1 if MASKED and C.SPLIT and SEGMENTS is None else None
    inverse_keep = 1.0 / (1.0 - threshold * (1.0 / 16777216.0))
    for at in tl.range(first, last, C.BM // C.GC, num_stages=STAGES):
        exists, entry, token, head, h, q, segment = queries_of(
            Q, ORDER, SEGMENTS, at, stop, list_row, p, length, first_head, q_h, q_t, C
        )
        lse2, delta, dout = gradients_of(DOUT, ROWS, exists, token, h, length, q_h, q_t, D, BD)
        if not MASKED:  # a row that does not exist has no weights
            lse2 = tl.where(exists, lse2, float("inf"))
        s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale2 - lse2[None, :]  # (BN, BM)
        w = tl.exp2(tl.minimum(s, 0.0))
        if MASKED:
            w = tl.where(tl.trans(live_pairs(exists, token, segment, key, end, SEGMENTS, C.CAUSAL)), w, 0.0)
        dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
        dropped = w
        if SEED is not None:
            kept = tl.trans(survivors(SEED, b, h, token, key, threshold, C.P * C.G))
            dropped = tl.where(kept, w * inverse_keep, 0.0)
            dp = tl.where(kept, dp * inverse_keep, 0.0)
        dv = tl.dot(dropped.to(dout.dtype), dout, dv, input_precision="ieee")  # (BN, BD)
        ds = (w * (dp - delta[None, :])).to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision="ieee")
        if C.SIZE <= C.BN:
            dq = tl.dot(tl.trans(ds), k, input_precision="ieee")  # (BM, BD)
            store_rows(PART, (u.to(tl.int64) * length * C.N + entry) * C.GC + head, exists, dq, D, BD)
    return dk, dv


@triton.jit(do_not_specialize=VARYING)
def selected_columns(
    Q, K, V, DOUT, ROWS, ORDER, LISTS, ITEMS, LENGTHS, SEGMENTS, SEED, PART, DK, DV, PARTIALS, q_b: tl.int64, q_h: tl.int64,
    q_t: tl.int64, kv_b: tl.int64, kv_h: tl.int64, kv_t: tl.int64, length: tl.int32, items: tl.int32, pickers: tl.int32,
    first: tl.int32, entries: tl.int32, partials: tl.int32, threshold: tl.int32, scale, C: tl.constexpr,
):  # fmt: skip
    """dk and dv of BN keys of a block from a run of the queries that picked it, and these queries' parts of dq.

    Tiles are transposed: (BN, BM). A block of several tiles of keys has a program for each, and no parts of dq from here.
    """
    D: tl.constexpr = C.D
    BD: tl.constexpr = C.BD
    BN: tl.constexpr = C.BN
    SIZE: tl.constexpr = C.SIZE
    pid = tl.program_id(0)
    SUBS: tl.constexpr = (SIZE + BN - 1) // BN
    sub = pid % SUBS
    u = pid // SUBS // items
    b, p, list_row = served(u, first, pickers, C.P, C.G, C.REPEAT)
    blocks = (length + SIZE - 1) // SIZE
    block, start, stop, run, runs, partial = work_of(LISTS, ITEMS, list_row, pid // SUBS % items, items, blocks, entries)
    if block < blocks:
        Q, DOUT, K, V, ROWS, end = of_sequence(Q, DOUT, K, V, ROWS, LENGTHS, b, p, block, length, q_b, kv_b, kv_h, C)
        if SEGMENTS is not None:
            SEGMENTS += b.to(tl.int64) * length
        begin = block * SIZE + sub * BN
        key = begin + tl.arange(0, BN)
        k = rows_at(K, key.to(tl.int64) * kv_t, key < end, D, BD)
        v = rows_at(V, key.to(tl.int64) * kv_t, key < end, D, BD)
        dk = tl.zeros([BN, BD], tl.float32)
        dv = tl.zeros([BN, BD], tl.float32)
        place = start
        if C.CAUSAL and SUBS > 1:
            # Tokens rise, and most often all of the block's own are there: those before these keys see none of them.
            jump = start + sub * BN
            if (run == 0) & (jump < stop) & (sub > 0):
                before = (tl.load(ORDER + jump - 1) - list_row * (length * C.N)) // C.N
                place = tl.where(before < begin, jump, start)
        full = stop
        if C.SPLIT and SEGMENTS is None:
            full = from_full(ORDER, start - run * entries, stop, place, list_row, block, end, length, C)
        dk, dv = differentiate_keys(
            dk, dv, k, v, Q, DOUT, ROWS, ORDER, SEGMENTS, SEED, PART, place, full, stop, key, end, list_row, b, p, u, length,
            q_h, q_t, first, threshold, scale * LOG2E, C, True,
        )  # fmt: skip
        if C.SPLIT and SEGMENTS is None:
            dk, dv = differentiate_keys(
                dk, dv, k, v, Q, DOUT, ROWS, ORDER, SEGMENTS, SEED, PART, full, stop, stop, key, end, list_row, b, p, u, length,
                q_h, q_t, first, threshold, scale * LOG2E, C, False,
            )  # fmt: skip
        offs_d = tl.arange(0, BD)
        inside = (offs_d < D)[None, :]
        if runs <= 1:
            here = (b.to(tl.int64) * (C.P // C.REPEAT) + p // C.REPEAT) * length + key
            rows = (here * D)[:, None] + offs_d[None, :]
            mask = (key < tl.minimum((block + 1) * SIZE, length))[:, None] & inside
            store_or_add(DK + rows, dk * scale, mask, C.ADD)
            store_or_add(DV + rows, dv, mask, C.ADD)
        else:
            here = (u * partials + partial + run).to(tl.int64) * (2 * SIZE) + sub * BN + tl.arange(0, BN)
            rows = (here * D)[:, None] + offs_d[None, :]
            mask = (sub * BN + tl.arange(0, BN) < SIZE)[:, None] & inside
            store_or_add(PARTIALS + rows, dk * scale, mask, C.GO_ON)
            store_or_add(PARTIALS + SIZE * D + rows, dv, mask, C.GO_ON)


@triton.jit(do_not_specialize=VARYING)
def add_runs(
    LISTS,
    PARTIALS,
    DK,
    DV,
    OUT_K,
    OUT_V,
    length: tl.int32,
    pickers: tl.int32,
    first: tl.int32,
    entries: tl.int32,
    partials: tl.int32,
    P: tl.constexpr,
    G: tl.constexpr,
    REPEAT: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    SIZE: tl.constexpr,
    ADD: tl.constexpr,
    FINISH: tl.constexpr,
):
    """dk and dv of BN keys of a block whose list several programs worked on: their sums, first run first.

    FINISH: OUT_K and OUT_V take these, and what DK and DV hold of the other blocks.
    """
    SUBS: tl.constexpr = (SIZE + BN - 1) // BN
    pid = tl.program_id(0)
    sub = pid % SUBS
    blocks = (length + SIZE - 1) // SIZE
    block = pid // SUBS % blocks
    u = pid // SUBS // blocks
    b, p, list_row = served(u, first, pickers, P, G, REPEAT)
    list_of = LISTS + (list_row * blocks + block) * 4
    runs = (tl.load(list_of + 1) - tl.load(list_of) + entries - 1) // entries
    if FINISH or runs > 1:
        offs_n = sub * BN + tl.arange(0, BN)
        offs_d = tl.arange(0, BD)
        at = offs_n[:, None] * D + offs_d[None, :]
        mask = (offs_n < SIZE)[:, None] & (offs_d < D)[None, :]
        own = u * partials + tl.load(list_of + 3)
        dk = tl.zeros([BN, BD], tl.float32)
        dv = tl.zeros([BN, BD], tl.float32)
        for run in tl.range(0, tl.where(runs > 1, runs, 0), num_stages=READ_AHEAD):
            mine = PARTIALS + (own + run).to(tl.int64) * (2 * SIZE * D) + at
            dk += tl.load(mine, mask=mask, other=0.0)
            dv += tl.load(mine + SIZE * D, mask=mask, other=0.0)
        key = block * SIZE + offs_n
        here = (b.to(tl.int64) * (P // REPEAT) + p // REPEAT) * length + key
        rows = (here * D)[:, None] + offs_d[None, :]
        mask = mask & (key < length)[:, None]
        if FINISH:
            whole = mask & (key < tl.where(runs > 1, 0, length))[:, None]
            dk += tl.load(DK + rows, mask=whole, other=0.0)
            dv += tl.load(DV + rows, mask=whole, other=0.0)
            store_or_add(OUT_K + rows, dk, mask, False)
            store_or_add(OUT_V + rows, dv, mask, False)
        else:
            store_or_add(DK + rows, dk, mask, ADD)
            store_or_add(DV + rows, dv, mask, ADD)


@triton.jit
def differentiate_queries(
    dq, q, dout, lse2, delta, K, V, SEGMENTS, SEED, exists, token, segment, b, h, first, last, end, kv_t, threshold, scale2,
    C: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of queries and the keys from `first` to `last`, tile after tile."""
    # Masked tiles are few where most tiles have all their pairs, and buffers of their own would leave those less room.
    STAGES: tl.constexpr = 1 if MASKED and C.SPLIT and SEGMENTS is None else None
    inverse_keep = 1.0 / (1.0 - threshold * (1.0 / 16777216.0))
    BN: tl.constexpr = C.BN
    for begin in tl.range(first, last, BN, num_stages=STAGES):
        key = begin + tl.arange(0, BN)
        if MASKED:
            k = rows_at(K, key.to(tl.int64) * kv_t, key < end, C.D, C.BD)
            v = rows_at(V, key.to(tl.int64) * kv_t, key < end, C.D, C.BD)
        else:
            k = whole_rows_at(K, key.to(tl.int64) * kv_t, C.D, C.BD)
            v = whole_rows_at(V, key.to(tl.int64) * kv_t, C.D, C.BD)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale2 - lse2[:, None]  # (BM, BN)
        w = tl.exp2(tl.minimum(s, 0.0))
        if MASKED:
            w = tl.where(live_pairs(exists, token, segment, key, end, SEGMENTS, C.CAUSAL), w, 0.0)
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        if SEED is not None:
            kept = survivors(SEED, b, h, token, key, threshold, C.P * C.G)
            dp = tl.where(kept, dp * inverse_keep, 0.0)
        ds = (w * (dp - delta[:, None])).to(k.dtype)
        dq = tl.dot(ds, k, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=VARYING)
def selected_rows(
    Q, K, V, DOUT, ROWS, ORDER, LISTS, ITEMS, LENGTHS, SEGMENTS, SEED, PART, q_b: tl.int64, q_h: tl.int64, q_t: tl.int64,
    kv_b: tl.int64, kv_h: tl.int64, kv_t: tl.int64, length: tl.int32, items: tl.int32, pickers: tl.int32, first: tl.int32,
    entries: tl.int32, threshold: tl.int32, scale, C: tl.constexpr,
):  # fmt: skip
    """Parts of dq / scale of one tile of the queries that picked a block of several tiles of keys."""
    D: tl.constexpr = C.D
    BD: tl.constexpr = C.BD
    BM: tl.constexpr = C.BM
    SIZE: tl.constexpr = C.SIZE
    pid = tl.program_id(0)
    u = pid // items
    b, p, list_row = served(u, first, pickers, C.P, C.G, C.REPEAT)
    blocks = (length + SIZE - 1) // SIZE
    block, start, stop, _, _, _ = work_of(LISTS, ITEMS, list_row, pid % items, items, blocks, entries)
    if (block < blocks) & (start < stop):
        Q, DOUT, K, V, ROWS, end = of_sequence(Q, DOUT, K, V, ROWS, LENGTHS, b, p, block, length, q_b, kv_b, kv_h, C)
        if SEGMENTS is not None:
            SEGMENTS += b.to(tl.int64) * length
        exists, entry, token, head, h, q, segment = queries_of(
            Q, ORDER, SEGMENTS, start, stop, list_row, p, length, first, q_h, q_t, C
        )
        lse2, delta, dout = gradients_of(DOUT, ROWS, exists, token, h, length, q_h, q_t, D, BD)
        dq = tl.zeros([BM, BD], tl.float32)
        begin = block * SIZE
        SPLIT: tl.constexpr = C.SPLIT and C.SIZE % C.BN == 0 and SEGMENTS is None
        full = False
        if SPLIT:
            full = sees_all(token, begin, end, C)
        if full:
            dq = differentiate_queries(
                dq, q, dout, lse2, delta, K, V, SEGMENTS, SEED, exists, token, segment, b, h, begin, end, end, kv_t, threshold,
                scale * LOG2E, C, False,
            )  # fmt: skip
        else:
            last = end
            if C.CAUSAL:  # tokens of a list rise
                last = tl.minimum(end, tl.max(token) + 1)
            dq = differentiate_queries(
                dq, q, dout, lse2, delta, K, V, SEGMENTS, SEED, exists, token, segment, b, h, begin, last, end, kv_t, threshold,
                scale * LOG2E, C, True,
            )  # fmt: skip
        store_rows(PART, (u.to(tl.int64) * length * C.N + entry) * C.GC + head, exists, dq, D, BD)
