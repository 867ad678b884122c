"""Triton kernels of attention to tokens that queries chose one by one. Triton is imported here: import this file lazily.

One program a query and key head: its G heads are the rows of a tile, keys are gathered BN at a time. Gradients of keys and
values are rows a pick first, of some queries at a time, and then summed by token in the order of the queries.
Legend: G heads a key head, BG (16 or more) rows of a tile, BN picks at a time, BD the head width D rounded up to a power of 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.selected.triton.backward_kernels import numbers_of, store_or_add
from longspan_kernels.selected.triton.common import LN2, LOG2E, elements, of_row, rows_at, store_rows

VARYING = ["q_b", "q_h", "q_t", "kv_b", "kv_h", "kv_t", "length", "kv_heads", "start", "chunk", "batch"]


@triton.jit
def picked_tile(PICKS, list_row, at, n, K, V, kv_t, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr):
    """(which exist, tokens, keys, values) of BN picks from place `at` of a query's n."""
    place = at + tl.arange(0, BN)
    token = tl.load(PICKS + list_row.to(tl.int64) * n + place, mask=place < n, other=-1)
    there = token >= 0
    offset = token.to(tl.int64) * kv_t
    return place, there, rows_at(K, offset, there, D, BD), rows_at(V, offset, there, D, BD)


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
    Q, K, V, DOUT, ROWS, PICKS, DQ, PART_K, PART_V, q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, kv_b: tl.int64,
    kv_h: tl.int64, kv_t: tl.int64, length: tl.int32, kv_heads: tl.int32, start: tl.int32, chunk: tl.int32, scale,
    n: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dq of queries `start` to `start + chunk`, and what each of their picks adds to dk and dv [B, Hkv, chunk, n, D]."""
    pid = tl.program_id(0)
    local = pid % chunk
    token = start + local
    kv = pid // chunk % kv_heads
    b = pid // chunk // kv_heads
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
        dq = tl.zeros([BG, BD], tl.float32)
        for at in tl.range(0, n, BN):
            place, there, k, v = picked_tile(PICKS, list_row, at, n, K + of_keys, V + of_keys, kv_t, D, BD, BN)
            s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E) - lse2[:, None]
            p = tl.where(there[None, :] & (g < G)[:, None], tl.exp2(tl.minimum(s, 0.0)), 0.0)
            dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
            ds = (p * (dp - delta[:, None])).to(k.dtype)
            dq = tl.dot(ds, k, dq, input_precision="ieee")
            part = pid.to(tl.int64) * n + place
            store_rows(PART_K, part, there, tl.dot(tl.trans(ds), q, input_precision="ieee") * scale, D, BD)
            store_rows(PART_V, part, there, tl.dot(tl.trans(p.to(dout.dtype)), dout, input_precision="ieee"), D, BD)
        store_rows(DQ, row, g < G, dq * scale, D, BD)


@triton.jit(do_not_specialize=VARYING)
def add_tokens(
    PART_K,
    PART_V,
    ORDER,
    START,
    DK,
    DV,
    length: tl.int32,
    kv_heads: tl.int32,
    chunk: tl.int32,
    n: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    ADD: tl.constexpr,
):
    """DK and DV [B, Hkv, T, D] of one token and key head: its rows among those of a chunk of queries."""
    pid = tl.program_id(0)
    token = pid % length
    kv = pid // length % kv_heads
    b = pid // length // kv_heads
    first = tl.load(START + b * length + token)
    stop = tl.load(START + b * length + token + 1)
    dk = tl.zeros([BD], tl.float32)
    dv = tl.zeros([BD], tl.float32)
    for at in tl.range(first, stop, BN):
        place = at + tl.arange(0, BN)
        there = place < stop
        entry = tl.load(ORDER + place, mask=there, other=0) - b * (chunk * n)
        part = (b * kv_heads + kv).to(tl.int64) * (chunk * n) + entry
        dk += tl.sum(rows_at(PART_K, of_row(part, D), there, D, BD).to(tl.float32), 0)
        dv += tl.sum(rows_at(PART_V, of_row(part, D), there, D, BD).to(tl.float32), 0)
    offs_d = tl.arange(0, BD)
    at_row = pid.to(tl.int64) * D + offs_d
    store_or_add(DK + at_row, dk, offs_d < D, ADD)
    store_or_add(DV + at_row, dv, offs_d < D, ADD)
