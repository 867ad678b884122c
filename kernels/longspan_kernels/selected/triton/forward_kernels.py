"""Triton kernels of selected attention's forward pass: partial outputs of every pick, and their merge.

Legend: see common.py. PART [pickers of the launch, T, N, GC, D] holds one output a pick in q's dtype, normalised by itself, and
PART_LSE its log-sum-exp in base 2; a launch serves as many heads as its memory is meant for.
"""

# ruff: noqa: SIM108 (compile-time branches stay statements)
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.selected.triton.common import (
    LN2,
    LOG2E,
    VARYING,
    elements,
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


@triton.jit
def softmax_step(
    acc,
    m_i,
    l_i,
    q,
    k,
    v,
    live,
    kept,
    inverse_keep,
    scale2,
    DROPS: tl.constexpr,
    FIRST: tl.constexpr,
    MASKED: tl.constexpr = True,
):
    """One tile of keys more: unnormalised sums, the largest score and the normaliser of every row, in base 2."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale2  # (BM, BN)
    if MASKED:
        s = tl.where(live, s, float("-inf"))
    higher = tl.max(s, 1)
    if not FIRST:
        higher = tl.maximum(m_i, higher)
    shift = higher
    if MASKED:  # a row may have no key yet
        shift = tl.where(higher == float("-inf"), 0.0, higher)
    p = tl.exp2(s - shift[:, None])
    if FIRST:
        l_i = tl.sum(p, 1)
    else:
        old = tl.exp2(m_i - shift)
        l_i = l_i * old + tl.sum(p, 1)
        acc = acc * old[:, None]
    if DROPS:
        p = tl.where(kept, p * inverse_keep, 0.0)
    if FIRST:
        acc = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    else:
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    return acc, higher, l_i


@triton.jit
def store_part(PART, PART_LSE, u, entry, head, exists, acc, m_i, l_i, length, C: tl.constexpr):
    acc = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
    lse = tl.where(l_i == 0.0, float("-inf"), m_i + tl.log2(l_i))
    cell = (u.to(tl.int64) * length * C.N + entry) * C.GC + head
    tl.store(PART_LSE + cell, lse, mask=exists)
    store_rows(PART, cell, exists, acc, C.D, C.BD)


@triton.jit
def attend_keys(
    acc, m_i, l_i, q, K, V, SEGMENTS, SEED, exists, token, segment, b, h, first, last, end, kv_t, threshold, scale2,
    C: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of queries and the keys from `first` to `last`, tile after tile."""
    inverse_keep = 1.0 / (1.0 - threshold * (1.0 / 16777216.0))
    # Masked tiles are few where most tiles have all their pairs, and buffers of their own would leave those less room.
    STAGES: tl.constexpr = 1 if MASKED and C.SPLIT and SEGMENTS is None else None
    DROPS: tl.constexpr = SEED is not None
    BN: tl.constexpr = C.BN
    for begin in tl.range(first, last, BN, num_stages=STAGES):
        key = begin + tl.arange(0, BN)
        if MASKED:
            k = rows_at(K, key.to(tl.int64) * kv_t, key < end, C.D, C.BD)
            v = rows_at(V, key.to(tl.int64) * kv_t, key < end, C.D, C.BD)
            live = live_pairs(exists, token, segment, key, end, SEGMENTS, C.CAUSAL)
        else:
            k = whole_rows_at(K, key.to(tl.int64) * kv_t, C.D, C.BD)
            v = whole_rows_at(V, key.to(tl.int64) * kv_t, C.D, C.BD)
            live = exists
        kept = 0
        if DROPS:
            kept = survivors(SEED, b, h, token, key, threshold, C.P * C.G)
        acc, m_i, l_i = softmax_step(acc, m_i, l_i, q, k, v, live, kept, inverse_keep, scale2, DROPS, False, MASKED)
    return acc, m_i, l_i


@triton.jit(do_not_specialize=VARYING)
def selected_parts(
    Q, K, V, ORDER, LISTS, ITEMS, LENGTHS, SEGMENTS, SEED, PART, PART_LSE, q_b: tl.int64, q_h: tl.int64, q_t: tl.int64,
    kv_b: tl.int64, kv_h: tl.int64, kv_t: tl.int64, length: tl.int32, items: tl.int32, pickers: tl.int32, first: tl.int32,
    entries: tl.int32, threshold: tl.int32, scale, C: tl.constexpr,
):  # fmt: skip
    """Outputs of the queries that picked a block over that block's keys.

    A block that fits a tile of keys is loaded once, for tile after tile of gathered queries; of a larger one the keys pass one
    tile of queries, and a work item is no more than that.
    """
    D: tl.constexpr = C.D
    BD: tl.constexpr = C.BD
    BM: tl.constexpr = C.BM
    BN: tl.constexpr = C.BN
    SIZE: tl.constexpr = C.SIZE
    pid = tl.program_id(0)
    u = pid // items
    b, p, list_row = served(u, first, pickers, C.P, C.G, C.REPEAT)
    blocks = (length + SIZE - 1) // SIZE
    block, start, stop, _, _, _ = work_of(LISTS, ITEMS, list_row, pid % items, items, blocks, entries)
    if (block < blocks) & (start < stop):
        end = tl.minimum(tokens_of(LENGTHS, b, length), (block + 1) * SIZE)
        b64 = b.to(tl.int64)
        Q += elements(b64 * q_b, D)
        of_keys = elements(b64 * kv_b + (p // C.REPEAT).to(tl.int64) * kv_h, D)
        K += of_keys
        V += of_keys
        if SEGMENTS is not None:
            SEGMENTS += b64 * length
        scale2 = scale * LOG2E
        inverse_keep = 1.0 / (1.0 - threshold * (1.0 / 16777216.0))
        DROPS: tl.constexpr = SEED is not None
        if SIZE <= BN:
            key = block * SIZE + tl.arange(0, BN)
            k = rows_at(K, key.to(tl.int64) * kv_t, key < end, D, BD)
            v = rows_at(V, key.to(tl.int64) * kv_t, key < end, D, BD)
            for place in tl.range(start, stop, BM // C.GC):
                exists, entry, token, head, h, q, segment = queries_of(
                    Q, ORDER, SEGMENTS, place, stop, list_row, p, length, first, q_h, q_t, C
                )
                live = live_pairs(exists, token, segment, key, end, SEGMENTS, C.CAUSAL)
                kept = 0
                if DROPS:
                    kept = survivors(SEED, b, h, token, key, threshold, C.P * C.G)
                acc, m_i, l_i = softmax_step(0, 0, 0, q, k, v, live, kept, inverse_keep, scale2, DROPS, True)
                store_part(PART, PART_LSE, u, entry, head, exists, acc, m_i, l_i, length, C)
        else:
            # One tile of queries, so that the loop over keys is the only one, which Triton pipelines.
            exists, entry, token, head, h, q, segment = queries_of(
                Q, ORDER, SEGMENTS, start, stop, list_row, p, length, first, q_h, q_t, C
            )
            acc = tl.zeros([BM, BD], tl.float32)
            m_i = tl.full([BM], float("-inf"), tl.float32)
            l_i = tl.zeros([BM], tl.float32)
            begin = block * SIZE
            SPLIT: tl.constexpr = C.SPLIT and SIZE % BN == 0 and SEGMENTS is None
            full = False
            if SPLIT:
                full = sees_all(token, begin, end, C)
            if full:
                acc, m_i, l_i = attend_keys(
                    acc, m_i, l_i, q, K, V, SEGMENTS, SEED, exists, token, segment, b, h, begin, end, end, kv_t, threshold,
                    scale2, C, False,
                )  # fmt: skip
            else:
                last = end
                if C.CAUSAL:  # tokens of a list rise
                    last = tl.minimum(end, tl.max(token) + 1)
                acc, m_i, l_i = attend_keys(
                    acc, m_i, l_i, q, K, V, SEGMENTS, SEED, exists, token, segment, b, h, begin, last, end, kv_t, threshold,
                    scale2, C, True,
                )  # fmt: skip
            store_part(PART, PART_LSE, u, entry, head, exists, acc, m_i, l_i, length, C)


@triton.jit(do_not_specialize=[*VARYING, "blocks"])
def merge_parts(
    PART,
    PART_LSE,
    PICKS,
    LENGTHS,
    OUT,
    LSE,
    length: tl.int32,
    tiles: tl.int32,
    pickers: tl.int32,
    first: tl.int32,
    blocks: tl.int32,
    scale,
    P: tl.constexpr,
    G: tl.constexpr,
    GC: tl.constexpr,
    REPEAT: tl.constexpr,
    N: tl.constexpr,
    BP: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """OUT and LSE of BM tokens of one head from the parts of their picks; without WEIGHTED, OUT is their sum times `scale`."""
    pid = tl.program_id(0)
    rest = pid // tiles
    head = rest % GC
    u = rest // GC
    b, p, list_row = served(u, first, pickers, P, G, REPEAT)
    g = first % G + head
    if g < G:
        token = pid % tiles * BM + tl.arange(0, BM)
        exists = token < tokens_of(LENGTHS, b, length)
        picks = PICKS + (list_row.to(tl.int64) * length + token) * N
        cell = (u.to(tl.int64) * length + token) * N * GC + head
        pick = tl.arange(0, BP)
        among = exists[:, None] & (pick < N)[None, :]
        block = tl.load(picks[:, None] + pick[None, :], mask=among, other=-1)
        made = (block >= 0) & (block < blocks)  # others are in no list, and have no part
        lse = tl.zeros([BM], tl.float32)
        shares = made.to(tl.float32)
        if WEIGHTED:
            each = tl.load(PART_LSE + cell[:, None] + pick[None, :] * GC, mask=made, other=float("-inf"))
            m_i = tl.max(each, 1)
            m_i = tl.where(m_i == float("-inf"), 0.0, m_i)
            lse = m_i + tl.log2(tl.sum(tl.exp2(each - m_i[:, None]), 1))
            shares = tl.exp2(each - tl.where(lse == float("-inf"), 0.0, lse)[:, None])
        acc = tl.zeros([BM, BD], tl.float32)
        for n in tl.range(0, N):
            # From registers: loads of one number a row would each be waited for.
            share = tl.sum(tl.where((pick == n)[None, :], shares, 0.0), 1)
            acc += share[:, None] * rows_at(PART, of_row(cell + n * GC, D), share > 0.0, D, BD).to(tl.float32)
        if not WEIGHTED:
            acc = acc * scale
        row = (b * (P * G) + p * G + g).to(tl.int64) * length + token
        store_rows(OUT, row, token < length, acc, D, BD)
        if WEIGHTED:
            tl.store(LSE + row, lse * LN2, mask=token < length)
