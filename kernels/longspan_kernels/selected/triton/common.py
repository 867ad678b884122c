"""Device functions that the kernels of selected attention share: what a program works on, gathered rows, live pairs.

A list is the entries (picks) that chose one key block, a work item a run of one list, and a launch serves some heads: `first`
is the first of them, one head group of each key head or GC heads of a group. Each (sequence, picker) pair has a row of lists.

Legend: BM rows of a tile (entries x GC heads), BN keys, BD the head width D rounded up to a power of two, P heads that pick
(pickers), G heads a picker, REPEAT pickers a key head, N picks a query, SIZE tokens a block.
Strides of q, k and v come in units of 16 elements (see `elements`).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.common import end_of
from longspan_kernels.block_sparse.triton.masks import dropout_keeps, dropout_rows

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# A kernel compiled for one value of these serves all.
VARYING = [
    *("q_b", "q_h", "q_t", "kv_b", "kv_h", "kv_t", "do_b", "do_h", "do_t", "length", "items", "pickers", "first"),
    *("entries", "partials", "tiles", "threshold"),
]


class Constants(NamedTuple):
    """What kernels over gathered queries are compiled for, as in the legend.

    ADD: gradients of keys add to what is there; GO_ON: their sums over runs do, which an earlier launch by the same lists left.
    SPLIT: tiles all of whose pairs count go through a loop of their own.
    """

    P: int
    G: int
    GC: int
    REPEAT: int
    N: int
    D: int
    BD: int
    SIZE: int
    CAUSAL: bool
    BM: int
    BN: int
    ADD: bool = False
    SPLIT: bool = False
    GO_ON: bool = False


@triton.jit
def served(u, first, pickers, P: tl.constexpr, G: tl.constexpr, REPEAT: tl.constexpr):
    """(b, the picker p, its row of lists b * P + p) of the launch's picker u."""
    b = u // pickers
    p = first // G + (u % pickers) * REPEAT
    return b, p, b * P + p


@triton.jit
def work_of(LISTS, ITEMS, list_row, item, items, blocks, entries):
    """(block, its first place in the order, the end, which run of its list, runs, partial): `blocks` where there is no work."""
    block = tl.load(ITEMS + list_row * items + item)
    here = LISTS + (list_row * blocks + tl.minimum(block, blocks - 1)) * 4
    start, stop = tl.load(here), tl.load(here + 1)
    run = item - tl.load(here + 2)
    partial = tl.load(here + 3)
    runs = (stop - start + entries - 1) // entries
    start += run * entries
    return block, start, tl.minimum(stop, start + entries), run, runs, partial


@triton.jit
def gathered(ORDER, place, stop, list_row, length, g0, C: tl.constexpr):
    """Rows of a tile: (whether they exist, entry in the row of lists, token, head of the launch, head of the group)."""
    row = tl.arange(0, C.BM)
    at = place + row // C.GC
    head = row % C.GC
    exists = (at < stop) & (g0 + head < C.G)
    entry = tl.load(ORDER + tl.minimum(at, stop - 1)) - list_row * (length * C.N)
    return exists, entry, entry // C.N, head, tl.minimum(g0 + head, C.G - 1)


@triton.jit
def elements(units, D: tl.constexpr):
    """Elements of an offset in units: 16 of them, or as many as divide the width. So the compiler sees how rows are aligned."""
    return units * (16 if D % 16 == 0 else 8 if D % 8 == 0 else 1)


@triton.jit
def of_row(row, D: tl.constexpr):
    """The offset in units of a row among rows of D numbers, one after another."""
    return row.to(tl.int64) * (D // (16 if D % 16 == 0 else 8 if D % 8 == 0 else 1))


@triton.jit
def rows_at(X, units, exists, D: tl.constexpr, BD: tl.constexpr):
    """Rows [len(units), BD] that begin at these offsets; zeros where they do not exist."""
    offs_d = tl.arange(0, BD)
    place = X + elements(units, D)[:, None] + offs_d[None, :]
    return tl.load(place, mask=exists[:, None] & (offs_d < D)[None, :], other=0.0)


@triton.jit
def whole_rows_at(X, units, D: tl.constexpr, BD: tl.constexpr):
    """Rows as `rows_at` has them, all of which exist."""
    offs_d = tl.arange(0, BD)
    place = X + elements(units, D)[:, None] + offs_d[None, :]
    return tl.load(place) if D == BD else tl.load(place, mask=(offs_d < D)[None, :], other=0.0)


@triton.jit
def store_rows(X, row, exists, rows, D: tl.constexpr, BD: tl.constexpr):
    """Rows of D numbers, one after another in memory."""
    offs_d = tl.arange(0, BD)
    place = X + (row.to(tl.int64) * D)[:, None] + offs_d[None, :]
    tl.store(place, rows.to(X.dtype.element_ty), mask=exists[:, None] & (offs_d < D)[None, :])


@triton.jit
def queries_of(Q, ORDER, SEGMENTS, place, stop, list_row, p, length, first, q_h, q_t, C: tl.constexpr):
    """A tile of gathered queries: (exist, entry, token, head within the launch, head of all, rows [BM, BD], their segments)."""
    exists, entry, token, head, g = gathered(ORDER, place, stop, list_row, length, first % C.G, C)
    h = p * C.G + g
    q = rows_at(Q, h.to(tl.int64) * q_h + token.to(tl.int64) * q_t, exists, C.D, C.BD)
    segment = token
    if SEGMENTS is not None:
        segment = tl.load(SEGMENTS + token)
    return exists, entry, token, head, h, q, segment


@triton.jit
def live_pairs(exists, token, segment, key, end, K_SEGMENTS, CAUSAL: tl.constexpr):
    """[rows, keys] bool. `segment` are those of the rows; K_SEGMENTS points at the sequence, or is None."""
    live = exists[:, None] & (key < end)[None, :]
    if CAUSAL:
        live = live & (key[None, :] <= token[:, None])
    if K_SEGMENTS is not None:
        theirs = tl.load(K_SEGMENTS + key, mask=key < end, other=0)
        live = live & (segment[:, None] == theirs[None, :])
    return live


@triton.jit
def sees_all(token, begin, end, C: tl.constexpr):
    """Whether all these queries see all keys from `begin` to `end`, and these fill a block."""
    full = end == begin + C.SIZE
    if C.CAUSAL:
        full = full & (tl.min(token) >= end - 1)
    return full


@triton.jit
def from_full(ORDER, list_start, stop, place, list_row, block, end, length, C: tl.constexpr):
    """The place of a list from which on queries see all keys of its block, `stop` where none is known to. Tiles begin there.

    Tokens of a list rise, and no more than SIZE of them lie inside of the block: past so many, one look tells.
    """
    full = place
    if C.CAUSAL:
        ROWS: tl.constexpr = C.BM // C.GC
        later = tl.maximum(list_start + C.SIZE, place)
        later = place + (later - place + ROWS - 1) // ROWS * ROWS
        token = (tl.load(ORDER + tl.minimum(later, stop - 1)) - list_row * (length * C.N)) // C.N
        full = tl.where((later < stop) & (token >= end), later, stop)
    return tl.where(end == (block + 1) * C.SIZE, full, stop)


@triton.jit
def tokens_of(LENGTHS, b, length):
    """Tokens of sequence b."""
    end = length
    if LENGTHS is not None:
        end = end_of(LENGTHS, b, length)
    return end


@triton.jit
def survivors(SEED, b, head, token, key, threshold, HEADS: tl.constexpr):
    """[rows, keys] bool: which weights dropout leaves."""
    drawn = dropout_rows(SEED, b * HEADS + head, token)
    return dropout_keeps(drawn[:, None], key[None, :], threshold)
