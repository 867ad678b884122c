"""The Triton kernel that selects the best tokens of each query from its index scores. Triton is imported here: import this file
lazily.

One program a query. The n-th best of the lanes (see `index_scores`) is a bound that some n tokens reach: they are collected in
one pass, and the n-th best of them is found bit by bit in registers. Where more reach it than there is room for, the n-th best
is found bit by bit over the row.

Legend: n picks a query, M lanes, ROOM tokens that may be collected, BLOCK scores at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.selected.triton.common import tokens_of
from longspan_kernels.selected.triton.index_scores import LEAST


@triton.jit
def common_bits(low, high, many):
    """Where to look for a number in low..high bit by bit: (the bits that are known, the first that is not).

    `many`: whether it is at least 0."""
    across = (low < 0) & (high >= 0)
    low = tl.where(across & many, 0, low)
    high = tl.where(across & (many == 0), -1, high)
    span = low ^ high
    span = span | (span >> 1)
    span = span | (span >> 2)
    span = span | (span >> 4)
    span = span | (span >> 8)
    span = span | (span >> 16)
    return low & (span ^ -1), span ^ (span >> 1)


@triton.jit
def nth_best(keys, n, low):
    """The n-th largest of whole numbers, `low` or more."""
    known, bit = common_bits(low, tl.max(keys, 0), tl.sum((keys >= 0).to(tl.int32), 0) >= n)
    while bit > 0:
        trial = known | bit
        known = tl.where(tl.sum((keys >= trial).to(tl.int32), 0) >= n, trial, known)
        bit = bit >> 1
    return known


@triton.jit
def scores_from(ROW, start, visible, width, BLOCK: tl.constexpr):
    """(columns, scores) of BLOCK columns. The load ends where all rows do, not at `visible`: so it takes several at once."""
    column = start + tl.arange(0, BLOCK)
    return column, tl.where(column < visible, tl.load(ROW + column, mask=column < width, other=LEAST), LEAST)


@triton.jit
def reaching(ROW, visible, width, least, BLOCK: tl.constexpr):
    """How many of the first `visible` scores of a row are `least` or more, which is above LEAST."""
    count = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, visible, BLOCK):
        _, keys = scores_from(ROW, start, visible, width, BLOCK)
        count += (keys >= least).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def nth_best_of_row(ROW, visible, width, n, low, high, BLOCK: tl.constexpr):
    known, bit = common_bits(low, high, reaching(ROW, visible, width, 0, BLOCK) >= n)
    while bit > 0:
        trial = known | bit
        known = tl.where(reaching(ROW, visible, width, trial, BLOCK) >= n, trial, known)
        bit = bit >> 1
    return known


@triton.jit
def ranks(keys, least, above, equal, equals):
    """Of scores in the order of tokens: (which are above `least` or among its first `equals` equals, their place, and how many
    are above and equal by now), given how many were before."""
    over = (keys > least).to(tl.int32)
    same = ((keys == least) & (keys > LEAST)).to(tl.int32)
    counted = tl.cumsum(over + (same << 16), 0)
    overs = above + (counted & 0xFFFF)
    sames = equal + (counted >> 16)
    taken = (over > 0) | ((same > 0) & (sames <= equals))
    total = tl.sum(over + (same << 16), 0)
    return taken, overs + tl.minimum(sames, equals) - 1, above + (total & 0xFFFF), equal + (total >> 16)


@triton.jit(do_not_specialize=["length", "first_b", "first", "rows", "padded", "key_tiles"])
def best_tokens(
    SCORES,
    LANES,
    LENGTHS,
    FOUND,
    FOUND_AT,
    OUT,
    length: tl.int32,
    first_b: tl.int32,
    first: tl.int32,
    rows: tl.int32,
    padded: tl.int32,
    key_tiles: tl.int32,
    n: tl.constexpr,
    M: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
    BN: tl.constexpr,
):
    """OUT [B, T, n]: the best tokens of `rows` queries from `first` on in rising order, then -1. SCORES have `padded` rows of
    key_tiles * BN a sequence, FOUND and FOUND_AT room for ROOM numbers a query."""
    pid = tl.program_id(0)
    local_b = pid // rows
    b = first_b + local_b
    row = first + pid % rows
    out = OUT + (b.to(tl.int64) * length + row) * n
    visible = tl.where(row < tokens_of(LENGTHS, b, length), row + 1, 0)
    if visible <= n:
        for start in tl.range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            tl.store(out + column, tl.where(column < visible, column, -1), mask=column < n)
    else:
        at = (local_b * padded + pid % rows).to(tl.int64)
        width = key_tiles * BN
        scores = SCORES + at * key_tiles * BN
        found = FOUND + pid.to(tl.int64) * ROOM
        found_at = FOUND_AT + pid.to(tl.int64) * ROOM
        lane = tl.arange(0, M)
        lanes = tl.where(lane < visible, tl.load(LANES + at * M + lane), LEAST)
        most = tl.max(lanes, 0)
        low = LEAST
        if n <= M:
            low = nth_best(lanes, n, tl.min(lanes, 0))
        above = 0
        equal = 0
        for start in tl.range(0, visible, BLOCK):
            column, keys = scores_from(scores, start, visible, width, BLOCK)
            taken, place, above, equal = ranks(keys, low, above, equal, n)
            taken = taken & (place < ROOM)
            tl.store(found + place, keys, mask=taken)
            tl.store(found_at + place, column, mask=taken)
        count = above + tl.minimum(equal, n)
        written = 0
        if count <= ROOM:
            tl.debug_barrier()
            number = tl.arange(0, ROOM)
            keys = tl.where(number < count, tl.load(found + number), LEAST)
            column = tl.load(found_at + number)
            least = nth_best(keys, n, low)
            equals = n - tl.sum((keys > least).to(tl.int32), 0)
            taken, place, above, equal = ranks(keys, least, 0, 0, equals)
            tl.store(out + place, column, mask=taken)
            written = above + tl.minimum(equal, equals)
        else:
            least = nth_best_of_row(scores, visible, width, n, low, most, BLOCK)
            equals = n - reaching(scores, visible, width, least + 1, BLOCK)
            above = 0
            equal = 0
            for start in tl.range(0, visible, BLOCK):
                column, keys = scores_from(scores, start, visible, width, BLOCK)
                taken, place, above, equal = ranks(keys, least, above, equal, equals)
                tl.store(out + place, column, mask=taken)
            written = above + tl.minimum(equal, equals)
        for start in tl.range(written, n, BLOCK):  # scores of -inf are never picked
            column = start + tl.arange(0, BLOCK)
            tl.store(out + column, -1, mask=column < n)
