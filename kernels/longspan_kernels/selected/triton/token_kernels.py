"""Triton kernels of attention to tokens that queries chose one by one. Triton is imported here: import this file lazily.

One program a query and key head: its G heads are the rows of a tile, keys are gathered BN at a time. Gradients of keys and
values are rows a pick first, of some queries at a time, each put at its place in the lists of `token_lists`, and then summed by
token in the order of the queries.
Legend: G heads a key head, BG (16 or more) rows of a tile, BN picks at a time, BD the head width D rounded up to a power of 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.selected.triton.backward_kernels import numbers_of, store_or_add
from longspan_kernels.selected.triton.common import LN2, LOG2E, elements, of_row, rows_at, store_rows
from longspan_kernels.selected.triton.token_lists import list_of, ones

VARYING = [
    *("q_b", "q_h", "q_t", "kv_b", "kv_h", "kv_t", "length", "kv_heads", "start", "chunk", "first_word", "lists", "parts"),
    "chunk_number",
]


@triton.jit
def picked_tile(PICKS, list_row, at, n, K, V, kv_t, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr):
    """(tokens, which exist, keys, values) of BN picks from place `at` of a query's n."""
    place = at + tl.arange(0, BN)
    token = tl.load(PICKS + list_row.to(tl.int64) * n + place, mask=place < n, other=-1)
    there = token >= 0
    offset = token.to(tl.int64) * kv_t
    return token, there, rows_at(K, offset, there, D, BD), rows_at(V, offset, there, D, BD)


@triton.jit
def stream_rows(X, row, exists, rows, D: tl.constexpr, BD: tl.constexpr):
    """As `store_rows`, of what is read once and late: it leaves the cache before keys and values do."""
    offs_d = tl.arange(0, BD)
    place = X + (row.to(tl.int64) * D)[:, None] + offs_d[None, :]
    there = exists[:, None] & (offs_d < D)[None, :]
    tl.store(place, rows.to(X.dtype.element_ty), mask=there, eviction_policy="evict_first")


@triton.jit(do_not_specialize=VARYING)
def attend_tokens(
    Q,
    K,
    V,
    PICKS,
    OUT,
    LSE,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    kv_b: tl.int64,
    kv_h: tl.int64,
    kv_t: tl.int64,
    length: tl.int32,
    kv_heads: tl.int32,
    scale,
    n: tl.constexpr,
    G: tl.constexpr,
    BG: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
):
    pid = tl.program_id(0)
    token = pid % length
    kv = pid // length % kv_heads
    b = pid // length // kv_heads
    g = tl.arange(0, BG)
    head = kv * G + g
    q = rows_at(Q + elements(b.to(tl.int64) * q_b + token.to(tl.int64) * q_t, D), head.to(tl.int64) * q_h, g < G, D, BD)
    of_keys = elements(b.to(tl.int64) * kv_b + kv.to(tl.int64) * kv_h, D)
    list_row = b * length + token
    acc = tl.zeros([BG, BD], tl.float32)
    m_i = tl.full([BG], float("-inf"), tl.float32)
    l_i = tl.zeros([BG], tl.float32)
    for at in tl.range(0, n, BN):
        _, there, k, v = picked_tile(PICKS, list_row, at, n, K + of_keys, V + of_keys, kv_t, D, BD, BN)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E)
        s = tl.where(there[None, :], s, float("-inf"))
        higher = tl.maximum(m_i, tl.max(s, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - shift[:, None])
        old = tl.exp2(m_i - shift)
        l_i = l_i * old + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * old[:, None], input_precision="ieee")
        m_i = higher
    acc = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
    row = (b * kv_heads * G + head).to(tl.int64) * length + token
    store_rows(OUT, row, g < G, acc, D, BD)
    tl.store(LSE + row, tl.where(l_i == 0.0, float("-inf"), (m_i + tl.log2(l_i)) * LN2), mask=g < G)


@triton.jit(do_not_specialize=VARYING)
def differentiate_tokens(
    Q, K, V, DOUT, ROWS, PICKS, TABLE, DQ, PARTS, q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, kv_b: tl.int64,
    kv_h: tl.int64, kv_t: tl.int64, length: tl.int32, kv_heads: tl.int32, start: tl.int32, chunk: tl.int32,
    first_word: tl.int32, lists: tl.int32, scale, n: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dq of `chunk` queries from `start` on, and what each of their picks adds to dk and dv, side by side: PARTS
    [Hkv, B * chunk * n, 2 * D], those of a token together, in the order of queries."""
    pid = tl.program_id(0)
    local = pid % chunk
    token = start + local
    kv = pid // chunk % kv_heads
    b = pid // chunk // kv_heads
    batch = tl.num_programs(0) // (chunk * kv_heads)
    if token < length:
        g = tl.arange(0, BG)
        head = kv * G + g
        first = elements(b.to(tl.int64) * q_b + token.to(tl.int64) * q_t, D)
        of_keys = elements(b.to(tl.int64) * kv_b + kv.to(tl.int64) * kv_h, D)
        q = rows_at(Q + first, head.to(tl.int64) * q_h, g < G, D, BD)
        row = (b * kv_heads * G + tl.minimum(head, kv * G + G - 1)).to(tl.int64) * length + token
        lse2, delta = numbers_of(ROWS, row)
        # What reaches a query without picks may be NaN.
        dout = rows_at(DOUT + first, head.to(tl.int64) * q_h, (g < G) & (lse2 < float("inf")), D, BD)
        list_row = b * length + token
        table = TABLE + (first_word + local // 32).to(tl.int64) * lists + b * length
        earlier = ((tl.full([1], 1, tl.int64) << (local % 32)) - 1).to(tl.int32)
        parts = PARTS + kv.to(tl.int64) * (batch * chunk).to(tl.int64) * (n * 2 * D)
        dq = tl.zeros([BG, BD], tl.float32)
        for at in tl.range(0, n, BN):
            picked, there, k, v = picked_tile(PICKS, list_row, at, n, K + of_keys, V + of_keys, kv_t, D, BD, BN)
            entry = tl.load(table + picked, mask=there, other=0)
            # Picks are rows, so that weights go from one product to the next in registers.
            s = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2E) - lse2[None, :]
            p = tl.where(there[:, None] & (g < G)[None, :], tl.exp2(tl.minimum(s, 0.0)), 0.0)
            part = 2 * ((entry >> 32) + ones(entry.to(tl.int32) & earlier))
            stream_rows(parts, part + 1, there, tl.dot(p.to(dout.dtype), dout, input_precision="ieee"), D, BD)
            dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
            ds = (p * (dp - delta[None, :])).to(k.dtype)
            stream_rows(parts, part, there, tl.dot(ds, q, input_precision="ieee") * scale, D, BD)
            dq = tl.dot(tl.trans(ds), k, dq, input_precision="ieee")
        store_rows(DQ, row, g < G, dq * scale, D, BD)


@triton.jit(do_not_specialize=VARYING)
def add_tokens(
    PARTS,
    ENDS,
    DK,
    DV,
    lists: tl.int32,
    length: tl.int32,
    kv_heads: tl.int32,
    parts: tl.int64,
    chunk_number: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    ADD: tl.constexpr,
):
    """DK and DV [B, Hkv, T, D] of one token and key head: the sum of its rows of a chunk, PARTS [Hkv, parts, 2 * D]."""
    pid = tl.program_id(0)
    token = pid % length
    kv = pid // length % kv_heads
    b = pid // length // kv_heads
    first, stop = list_of(ENDS + chunk_number.to(tl.int64) * lists, b * length + token)
    if (ADD == 0) | (first < stop):
        here = PARTS + kv.to(tl.int64) * parts * (2 * D)
        dk = tl.zeros([BD], tl.float32)
        dv = tl.zeros([BD], tl.float32)
        for at in tl.range(first, stop, BN):
            place = at + tl.arange(0, BN)
            row = of_row(2 * place.to(tl.int64), D)
            dk += tl.sum(rows_at(here, row, place < stop, D, BD).to(tl.float32), 0)
            dv += tl.sum(rows_at(here + D, row, place < stop, D, BD).to(tl.float32), 0)
        offs_d = tl.arange(0, BD)
        at_row = pid.to(tl.int64) * D + offs_d
        store_or_add(DK + at_row, dk, offs_d < D, ADD)
        store_or_add(DV + at_row, dv, offs_d < D, ADD)
