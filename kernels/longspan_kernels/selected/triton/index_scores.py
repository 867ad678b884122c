"""The Triton kernel of index scores, as whole numbers in their order. Triton is imported here: import this file lazily.

A program scores a tile of queries beside every M-th tile of keys, so that it can also leave the best of each lane: lane m of a
query holds the tokens m, m + M, m + 2 M and so on. The n-th best of M lanes is at most the n-th best of all, and near it where
M is some times n: a bound by which the best are found in one pass.

Legend: J heads, E their width, BE it rounded up to a power of two, M lanes, BM x BN a tile of queries x keys.
"""

# Triton adds tuples, but does not unpack into them; their types are its own.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.selected.triton.common import elements, rows_at, tokens_of

LEAST = tl.constexpr(-(1 << 31))  # of a token that a query does not see
NEVER = tl.constexpr(0x7FFFFF - (1 << 31))  # of a score of -inf: it and less are never picked
VARYING = [*("q_b", "q_j", "q_t", "k_b", "k_t", "w_b", "w_j", "w_t", "length", "first_b", "first", "row_tiles", "key_tiles")]


@triton.jit
def in_order(scores):
    """Whole numbers that compare as the scores do. A sum that begins with 0 is never -0, so equal scores have equal numbers."""
    bits = scores.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def of_head(Q, W, j, row, exists, q_j, q_t, w_j, w_t, E: tl.constexpr, BE: tl.constexpr):
    """(queries [BM, BE], weights [BM]) of one head."""
    q = rows_at(Q + elements(j * q_j, E), row.to(tl.int64) * q_t, exists, E, BE)
    return q, tl.load(W + j * w_j + row.to(tl.int64) * w_t, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def of_heads(Q, W, row, exists, q_j, q_t, w_j, w_t, J: tl.constexpr, E: tl.constexpr, BE: tl.constexpr):
    queries, weights = (), ()
    for j in tl.static_range(J):
        q, w = of_head(Q, W, j, row, exists, q_j, q_t, w_j, w_t, E, BE)
        queries = queries + (q,)
        weights = weights + (w,)
    return queries, weights


@triton.jit(do_not_specialize=VARYING)
def index_scores(
    Q,
    K,
    W,
    LENGTHS,
    SCORES,
    LANES,
    q_b: tl.int64,
    q_j: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_t: tl.int64,
    w_b: tl.int64,
    w_j: tl.int64,
    w_t: tl.int64,
    length: tl.int32,
    first_b: tl.int32,
    first: tl.int32,
    row_tiles: tl.int32,
    key_tiles: tl.int32,
    J: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
    M: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    HELD: tl.constexpr,
):
    """SCORES [sequences, row_tiles * BM, key_tiles * BN] and LANES [sequences, row_tiles * BM, M], both int32, of queries from
    `first` on.

    Columns after a row's tile of keys are not written. HELD: queries of all heads stay in shared memory.
    """
    pid = tl.program_id(0)
    lane = pid % (M // BN) * BN
    tile = row_tiles - 1 - pid // (M // BN) % row_tiles  # late queries see most: they go first
    local_b = pid // (M // BN) // row_tiles
    b = first_b + local_b
    base = first + tile * BM
    row = base + tl.arange(0, BM)
    tokens = tokens_of(LENGTHS, b, length)
    end = tl.where(base < tokens, tl.minimum(base + BM, tokens), 0)
    Q += elements(b.to(tl.int64) * q_b, E)
    K += elements(b.to(tl.int64) * k_b, E)
    W += b.to(tl.int64) * w_b
    at = (local_b * row_tiles + tile).to(tl.int64) * BM
    SCORES += at * key_tiles * BN
    LANES += at * M
    local = tl.arange(0, BM)[:, None]
    best = tl.full([BM, BN], LEAST, tl.int32)
    if lane < end:
        if HELD:
            queries, weights = of_heads(Q, W, row, row < end, q_j, q_t, w_j, w_t, J, E, BE)
        for start in tl.range(lane, end, M):
            column = start + tl.arange(0, BN)
            k = tl.trans(rows_at(K, column.to(tl.int64) * k_t, column < end, E, BE))
            total = tl.zeros([BM, BN], tl.float32)
            if HELD:
                for j in tl.static_range(J):
                    total += tl.maximum(tl.dot(queries[j], k, input_precision="ieee"), 0.0) * weights[j][:, None]
            else:
                for j in tl.range(0, J):
                    q, w = of_head(Q, W, j, row, row < end, q_j, q_t, w_j, w_t, E, BE)
                    total += tl.maximum(tl.dot(q, k, input_precision="ieee"), 0.0) * w[:, None]
            key = tl.where(column[None, :] <= row[:, None], in_order(total), LEAST)
            tl.store(SCORES + (local * (key_tiles * BN) + column[None, :]), key)
            best = tl.maximum(best, key)
        tl.store(LANES + (local * M + (lane + tl.arange(0, BN))[None, :]), best)
