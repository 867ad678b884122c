"""Triton kernels of bucketed attention's backward pass: what every round adds to the gradients, and their sums.

    p = exp(s - lse)    ds = p * (dp - delta)    delta = sum(dout * out)

A program makes all that one tile's tokens get in a round, as queries and as keys: first with the other keys that its queries
see, then with itself, once for both, then with the other queries that see its keys. Every sum has one order, so that two runs
give the same bits.

Legend: see common.py. PART_Q and PART_V [N, T, D] hold what each round adds to dq and dv.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.bucketed.triton.common import (
    VARYING,
    as_keys,
    as_queries,
    head_at,
    live_pairs,
    numbers_of,
    of_unit_length,
    rows_of,
    survivors,
    tile_of,
    tokens_at,
    tokens_of_program,
)
from longspan_kernels.selected.triton.backward_kernels import numbers_of as lse_and_delta
from longspan_kernels.selected.triton.common import LOG2E, of_row, rows_at, store_rows


@triton.jit
def rows_of_gradient(DOUT, ROWS, i, do_t, exists, C: tl.constexpr):
    """(lse in base 2, delta, rows of dout [BM, BD]) of tokens. A token without keys may have a gradient of NaN: left out."""
    lse2, delta = lse_and_delta(ROWS, i)
    return lse2, delta, rows_of(DOUT, i, do_t, exists & (lse2 < float("inf")), C)


@triton.jit
def tile_gradients(
    q, k, v, dout, lse2, delta, queries, keys, SEED, n, r, threshold, scale2, C: tl.constexpr, TRANSPOSED: tl.constexpr
):  # fmt: skip
    """(weights as the output has them, ds) of a tile [queries, keys], or its transpose, in the dtype of q.

    `queries` and `keys` are (tokens, whether they exist, their numbers).
    """
    live = live_pairs(r, queries, keys, C, TRANSPOSED)
    if TRANSPOSED:
        s = tl.dot(k, tl.trans(q), input_precision="ieee")
        dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
        lse2, delta = lse2[None, :], delta[None, :]
    else:
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
        lse2, delta = lse2[:, None], delta[:, None]
    w = tl.where(live, tl.exp2(tl.minimum(s * scale2 - lse2, 0.0)), 0.0)
    dropped = w
    if SEED is not None:
        kept = survivors(SEED, n, queries[0], keys[0], threshold, TRANSPOSED)
        inverse_keep = 1.0 / (1.0 - threshold * (1.0 / 16777216.0))
        dropped = tl.where(kept, w * inverse_keep, 0.0)
        dp = tl.where(kept, dp * inverse_keep, 0.0)
    return dropped.to(q.dtype), (w * (dp - delta)).to(q.dtype)


@triton.jit(do_not_specialize=VARYING)
def differentiate_buckets(
    Q, V, DOUT, ROWS, ORDER, TILES, NUMBERS, SEED, PART_Q, PART_V, q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, v_b: tl.int64,
    v_h: tl.int64, v_t: tl.int64, do_b: tl.int64, do_h: tl.int64, do_t: tl.int64, length: tl.int32, tiles: tl.int32,
    heads: tl.int32, threshold: tl.int32, scale, C: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = C.BM
    BD: tl.constexpr = C.BD
    n = tl.program_id(0) // tiles
    r = n % C.R
    begin, first, end, chunk = tile_of(TILES, n, tiles)
    if begin < end:
        bh = n // C.R
        b, h = bh // heads, bh % heads
        Q = head_at(Q, b, h, q_b, q_h, C.D)
        V = head_at(V, b, h, v_b, v_h, C.D)
        DOUT = head_at(DOUT, b, h, do_b, do_h, C.D)
        ROWS += bh.to(tl.int64) * length * 2
        ORDER += n.to(tl.int64) * length
        NUMBERS += bh.to(tl.int64) * C.RP * length
        scale2 = scale * LOG2E
        t, exists = tokens_at(ORDER, begin, end, BM)
        own = (t, exists, numbers_of(NUMBERS, t, C))
        x = rows_of(Q, t, q_t, exists, C)
        q, k = as_queries(x, C), as_keys(x, C)
        v = rows_of(V, t, v_t, exists, C)
        lse2, delta, dout = rows_of_gradient(DOUT, ROWS, t, do_t, exists, C)

        # The other keys that its queries see: those before, and both ways those after in the chunk.
        dq = tl.zeros([BM, BD], tl.float32)
        others = (begin - first) // BM
        if not C.CAUSAL:
            others = (tl.minimum(chunk + C.SIZE, end) - first + BM - 1) // BM - 1
        for number in tl.range(0, others):
            place = first + number * BM
            if not C.CAUSAL:
                place += tl.where(place >= begin, BM, 0)
            j, j_exists = tokens_at(ORDER, place, end, BM)
            kj = as_keys(rows_of(Q, j, q_t, j_exists, C), C)
            vj = rows_of(V, j, v_t, j_exists, C)
            theirs = (j, j_exists, numbers_of(NUMBERS, j, C))
            _, dsj = tile_gradients(q, kj, vj, dout, lse2, delta, own, theirs, SEED, n, r, threshold, scale2, C, False)
            dq = tl.dot(dsj, kj, dq, input_precision="ieee")

        # The tile with itself, transposed: (keys, queries).
        w, ds = tile_gradients(q, k, v, dout, lse2, delta, own, own, SEED, n, r, threshold, scale2, C, True)
        dv = tl.dot(w, dout, input_precision="ieee")
        dk = tl.dot(ds, q, input_precision="ieee")
        dq = tl.dot(tl.trans(ds), k, dq, input_precision="ieee")

        # The other queries that see its keys: those after, up to the end of the next chunk, and both ways those before.
        start = begin + BM if C.CAUSAL else chunk
        others = (tl.minimum(chunk + 2 * C.SIZE, end) - start + BM - 1) // BM
        if not C.CAUSAL:
            others -= 1
        for number in tl.range(0, others):
            place = start + number * BM
            if not C.CAUSAL:
                place += tl.where(place >= begin, BM, 0)
            i, i_exists = tokens_at(ORDER, place, end, BM)
            qi = as_queries(rows_of(Q, i, q_t, i_exists, C), C)
            lse2i, deltai, douti = rows_of_gradient(DOUT, ROWS, i, do_t, i_exists, C)
            theirs = (i, i_exists, numbers_of(NUMBERS, i, C))
            wi, dsi = tile_gradients(qi, k, v, douti, lse2i, deltai, theirs, own, SEED, n, r, threshold, scale2, C, True)
            dv = tl.dot(wi, douti, dv, input_precision="ieee")
            dk = tl.dot(dsi, qi, dk, input_precision="ieee")

        if C.UNIT_QUERIES:
            dk += dq
        if C.UNIT_KEYS or C.UNIT_QUERIES:  # a row of unit length is its query by a factor, which changes with the query
            exact = x.to(tl.float32)
            _, factor = of_unit_length(x, True, C)
            along = tl.sum(exact * dk, 1) * factor * factor
            dk = (dk - exact * along[:, None]) * factor[:, None]
        if not C.UNIT_QUERIES:
            dk += dq
        row = n.to(tl.int64) * length + t
        store_rows(PART_Q, row, exists, dk * scale, C.D, C.BD)
        store_rows(PART_V, row, exists, dv, C.D, C.BD)


@triton.jit(do_not_specialize=VARYING)
def add_rounds(
    PART_Q,
    PART_V,
    DOUT,
    LSE,
    LENGTHS,
    DQ,
    DV,
    do_b: tl.int64,
    do_h: tl.int64,
    do_t: tl.int64,
    length: tl.int32,
    tiles: tl.int32,
    heads: tl.int32,
    R: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """DQ and DV of BM tokens of a head: the sums over rounds, first round first. A token that saw nothing had its own value."""
    bh, b, _, token, end = tokens_of_program(LENGTHS, tiles, heads, length, BM)
    exists = token < end
    out = bh.to(tl.int64) * length + token
    alone = tl.load(LSE + out, mask=exists, other=0.0) == float("-inf")
    dout = rows_at(head_at(DOUT, b, bh % heads, do_b, do_h, D), token.to(tl.int64) * do_t, exists & alone, D, BD)
    dv = dout.to(tl.float32)
    dq = tl.zeros([BM, BD], tl.float32)
    first = bh.to(tl.int64) * R * length + token
    for r in tl.static_range(R):
        units = of_row(first + r * length, D)
        dq += rows_at(PART_Q, units, exists, D, BD).to(tl.float32)
        dv += rows_at(PART_V, units, exists, D, BD).to(tl.float32)
    store_rows(DQ, out, token < length, dq, D, BD)
    store_rows(DV, out, token < length, dv, D, BD)
