"""Device functions and arguments that the kernels of bucketed attention share. Triton is imported here: import lazily.

A program works for one tile of BM places of an order, and loops over tiles of the same chunk and of its neighbour.

Legend: N = B H R sequences, RP a power of two that holds R, BD the head width D as a power of two, C the constants below.
Strides come in units (see `selected.triton.common.elements`).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.common import end_of
from longspan_kernels.block_sparse.triton.masks import dropout_keeps, dropout_rows
from longspan_kernels.selected.triton.common import elements, rows_at

# A kernel compiled for one value of these serves all.
VARYING = ["q_b", "q_h", "q_t", "v_b", "v_h", "v_t", "do_b", "do_h", "do_t", "length", "tiles", "heads", "threshold"]
NOBODY = tl.constexpr(1 << 30)  # beyond every token
NOWHERE = tl.constexpr(-(1 << 30))  # before every number


class Constants(NamedTuple):
    """What kernels are compiled for: see `Buckets`, and the legend."""

    R: int
    RP: int
    SIZE: int
    BM: int
    ALIGNED: bool
    CAUSAL: bool
    ITSELF: bool
    UNIT_KEYS: bool
    UNIT_QUERIES: bool
    DIRECT: bool
    D: int
    BD: int


@triton.jit
def tile_of(TILES, n, tiles):
    """(first place of this program's tile, first place that it sees, end of its tokens, first place of its chunk)."""
    at = TILES + (n.to(tl.int64) * tiles + tl.program_id(0) % tiles) * 4
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def tokens_of_program(LENGTHS, tiles, heads, length, BM: tl.constexpr):
    """(number of the head in the batch, sequence, head, BM tokens, end of those that exist) of a program that works for some
    tokens of a head."""
    pid = tl.program_id(0)
    bh = pid // tiles
    b, h = bh // heads, bh % heads
    token = pid % tiles * BM + tl.arange(0, BM)
    end = length
    if LENGTHS is not None:
        end = end_of(LENGTHS, b, length)
    return bh, b, h, token, end


@triton.jit
def tokens_at(ORDER, place, end, BM: tl.constexpr):
    """(tokens at BM places, whether they exist)."""
    at = place + tl.arange(0, BM)
    return tl.load(ORDER + tl.minimum(at, end - 1)), at < end


@triton.jit
def head_at(X, b, h, x_b, x_h, D: tl.constexpr):
    return X + elements(b.to(tl.int64) * x_b + h.to(tl.int64) * x_h, D)


@triton.jit
def rows_of(X, token, x_t, exists, C: tl.constexpr):
    """Rows [BM, BD] of tokens, 0 where they do not exist."""
    return rows_at(X, token.to(tl.int64) * x_t, exists, C.D, C.BD)


@triton.jit
def of_unit_length(x, WANTED: tl.constexpr, C: tl.constexpr):
    """Rows [BM, BD] brought to length 1 where that is wanted, and the factor of each."""
    BM: tl.constexpr = C.BM
    factor = tl.full([BM], 1.0, tl.float32)
    if WANTED:
        exact = x.to(tl.float32)
        factor = 1.0 / tl.sqrt(tl.sum(exact * exact, 1) + C.D * 1e-6)
        x = (exact * factor[:, None]).to(x.dtype)
    return x, factor


@triton.jit
def as_queries(x, C: tl.constexpr):
    q, _ = of_unit_length(x, C.UNIT_QUERIES, C)
    return q


@triton.jit
def as_keys(x, C: tl.constexpr):
    k, _ = of_unit_length(x, C.UNIT_KEYS, C)
    return k


@triton.jit
def side_by_side(a, b, TRANSPOSED: tl.constexpr):
    """Of a number a query and one a key, both as they broadcast to a tile [queries, keys], or its transpose."""
    if TRANSPOSED:
        a, b = a[None, :], b[:, None]
    else:
        a, b = a[:, None], b[None, :]
    return a, b


@triton.jit
def numbers_of(NUMBERS, token, C: tl.constexpr):
    """[BM, RP] the numbers of tokens in all rounds; NUMBERS points at the head. Something else where no mask needs them.

    One load that is as large as there are threads: Triton makes smaller ones once a thread of whatever layout they are used in.
    """
    RP: tl.constexpr = C.RP
    numbers = token
    if RP > 1 or not C.ALIGNED:
        numbers = tl.load(NUMBERS + token[:, None] * RP + tl.arange(0, RP)[None, :])
    return numbers


@triton.jit
def in_round(numbers, r, C: tl.constexpr):
    """[BM] the numbers of one round."""
    RP: tl.constexpr = C.RP
    return tl.sum(tl.where(tl.arange(0, RP)[None, :] == r, numbers, 0), 1)


@triton.jit
def behind(ours, theirs, TRANSPOSED: tl.constexpr):
    """How far the number of a query lies behind that of a key, as an unsigned number: large where it lies before."""
    ours, theirs = side_by_side(ours, theirs, TRANSPOSED)
    return (ours - theirs).to(tl.uint32, bitcast=True)


@triton.jit
def live_pairs(r, queries, keys, C: tl.constexpr, TRANSPOSED: tl.constexpr):
    """[queries, keys] bool, or its transpose: which pairs count in round r.

    `queries` and `keys` are (tokens, whether they exist, their `numbers_of`).
    """
    i, i_exists, i_numbers = queries[0], queries[1], queries[2]
    j, j_exists, j_numbers = keys[0], keys[1], keys[2]
    if C.CAUSAL:  # what does not exist lies before all keys and after all queries
        i_token, j_token = side_by_side(tl.where(i_exists, i, -1), tl.where(j_exists, j, NOBODY), TRANSPOSED)
        live = j_token <= i_token if C.ITSELF else j_token < i_token
    else:
        i_there, j_there = side_by_side(i_exists, j_exists, TRANSPOSED)
        live = i_there & j_there
        if not C.ITSELF:
            i_token, j_token = side_by_side(i, j, TRANSPOSED)
            live = live & (j_token != i_token)
    if not C.ALIGNED:  # a chunk has several buckets
        live = live & (behind(in_round(i_numbers, r, C), in_round(j_numbers, r, C), TRANSPOSED) <= C.SIZE)
    for earlier in tl.static_range(C.R - 1):
        # What is no earlier round leaves nothing out: its keys lie too far before.
        theirs = tl.where(earlier < r, in_round(j_numbers, earlier, C), NOWHERE)
        live = live & (behind(in_round(i_numbers, earlier, C), theirs, TRANSPOSED) > C.SIZE)
    return live


@triton.jit
def survivors(SEED, n, i, j, threshold, TRANSPOSED: tl.constexpr):
    """[queries, keys] bool, or its transpose: which weights dropout leaves."""
    row, key = side_by_side(dropout_rows(SEED, n, i), j, TRANSPOSED)
    return dropout_keeps(row, key, threshold)
