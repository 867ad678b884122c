"""Triton kernels of bucketed attention's forward pass: outputs of every round, and their merge.

Legend: see common.py. PART [N, T, D] holds what each round gives a token, normalised by itself, and PART_LSE [N, T] its
log-sum-exp in base 2, -inf where a round finds nothing.
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
    rows_of,
    survivors,
    tile_of,
    tokens_at,
    tokens_of_program,
)
from longspan_kernels.selected.triton.common import LN2, LOG2E, of_row, rows_at, store_rows
from longspan_kernels.selected.triton.forward_kernels import softmax_step


@triton.jit(do_not_specialize=VARYING)
def attend_buckets(
    Q, V, ORDER, TILES, NUMBERS, SEED, PART, PART_LSE, q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, v_b: tl.int64,
    v_h: tl.int64, v_t: tl.int64, length: tl.int32, tiles: tl.int32, heads: tl.int32, threshold: tl.int32, scale,
    C: tl.constexpr,
):  # fmt: skip
    """What a tile's queries get from the keys of their chunk and of the one before."""
    BM: tl.constexpr = C.BM
    BD: tl.constexpr = C.BD
    n = tl.program_id(0) // tiles
    begin, first, end, chunk = tile_of(TILES, n, tiles)
    if begin < end:
        bh = n // C.R
        Q = head_at(Q, bh // heads, bh % heads, q_b, q_h, C.D)
        V = head_at(V, bh // heads, bh % heads, v_b, v_h, C.D)
        ORDER += n.to(tl.int64) * length
        NUMBERS += bh.to(tl.int64) * C.RP * length
        i, i_exists = tokens_at(ORDER, begin, end, BM)
        queries = (i, i_exists, numbers_of(NUMBERS, i, C))
        q = as_queries(rows_of(Q, i, q_t, i_exists, C), C)
        stop = tl.minimum(begin + BM, end) if C.CAUSAL else tl.minimum(chunk + C.SIZE, end)
        inverse_keep = 1.0 / (1.0 - threshold * (1.0 / 16777216.0))
        DROPS: tl.constexpr = SEED is not None
        acc = tl.zeros([BM, BD], tl.float32)
        m_i = tl.full([BM], float("-inf"), tl.float32)
        l_i = tl.zeros([BM], tl.float32)
        for place in tl.range(first, stop, BM):
            j, j_exists = tokens_at(ORDER, place, stop, BM)
            k = as_keys(rows_of(Q, j, q_t, j_exists, C), C)
            v = rows_of(V, j, v_t, j_exists, C)
            keys = (j, j_exists, numbers_of(NUMBERS, j, C))
            live = live_pairs(n % C.R, queries, keys, C, False)
            kept = 0
            if DROPS:
                kept = survivors(SEED, n, i, j, threshold, False)
            acc, m_i, l_i = softmax_step(acc, m_i, l_i, q, k, v, live, kept, inverse_keep, scale * LOG2E, DROPS, False)
        acc = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
        lse = tl.where(l_i == 0.0, float("-inf"), m_i + tl.log2(l_i))
        if C.DIRECT:  # these are the output and its log-sum-exp
            lse = lse * LN2
        row = n.to(tl.int64) * length + i
        tl.store(PART_LSE + row, lse, mask=i_exists)
        store_rows(PART, row, i_exists, acc, C.D, C.BD)


@triton.jit(do_not_specialize=VARYING)
def merge_rounds(
    PART,
    PART_LSE,
    V,
    LENGTHS,
    OUT,
    LSE,
    v_b: tl.int64,
    v_h: tl.int64,
    v_t: tl.int64,
    length: tl.int32,
    tiles: tl.int32,
    heads: tl.int32,
    R: tl.constexpr,
    BR: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """OUT and LSE of BM tokens of a head from what the rounds gave them; a token that saw nothing gets its own value."""
    bh, b, _, token, end = tokens_of_program(LENGTHS, tiles, heads, length, BM)
    exists = token < end
    first = bh.to(tl.int64) * R * length + token  # of the head's first round
    r = tl.arange(0, BR)
    at = first[:, None] + r.to(tl.int64)[None, :] * length
    each = tl.load(PART_LSE + at, mask=exists[:, None] & (r < R)[None, :], other=float("-inf"))
    m_i = tl.max(each, 1)
    m_i = tl.where(m_i == float("-inf"), 0.0, m_i)
    lse = m_i + tl.log2(tl.sum(tl.exp2(each - m_i[:, None]), 1))
    alone = lse == float("-inf")
    own = rows_at(head_at(V, b, bh % heads, v_b, v_h, D), token.to(tl.int64) * v_t, exists & alone, D, BD)
    acc = own.to(tl.float32)
    for n in tl.static_range(R):
        row = first + n * length
        theirs = tl.load(PART_LSE + row, mask=exists & (alone == 0), other=float("-inf"))
        weight = tl.exp2(theirs - tl.where(alone, 0.0, lse))
        # A round that found nothing leaves zeros.
        part = rows_at(PART, of_row(row, D), theirs > float("-inf"), D, BD).to(tl.float32)
        acc += part * weight[:, None]
    out = bh.to(tl.int64) * length + token
    store_rows(OUT, out, token < length, acc, D, BD)
    tl.store(LSE + out, lse * LN2, mask=token < length)
