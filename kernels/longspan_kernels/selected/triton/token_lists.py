"""Finds where the gradient of a pick goes, so that those of a token lie together in the order of queries: by counting, without
a sort. Triton is imported here: import this file lazily.

A word holds which of 32 queries picked a token, one bit each. Before the picks of a query come those of the words before, and
those of the bits below its own. Bits are set by integer operations whose result does not depend on their order.

Legend: n picks a query, lists = B * T, one a token; a chunk of queries has lists of its own, made of `words` words each.
TABLE [words of all chunks, lists] int64: the word in the lower half, in the upper how many picks of the chunk come before it.
"""

from __future__ import annotations

import triton
import triton.language as tl

LISTS = 32  # a program
VARYING = ["length", "start", "rows", "lists", "words"]


@triton.jit
def ones(x):
    """How many bits of 32-bit numbers are set."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + ((x >> 4) & 0x0F0F0F0F)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 0x3F


@triton.jit
def list_of(ENDS, number):
    """(the place of its first pick, the place after its last) of a list of a chunk."""
    return tl.load(ENDS + number - 1, mask=number > 0, other=0), tl.load(ENDS + number)


@triton.jit(do_not_specialize=VARYING)
def mark_picks(
    PICKS, TABLE, length: tl.int32, start: tl.int32, rows: tl.int32, lists: tl.int32, n: tl.constexpr, BN: tl.constexpr
):
    """Sets the bits of `rows` queries from `start` on in TABLE, which holds 0."""
    pid = tl.program_id(0)
    local = pid % rows
    b = pid // rows
    table = TABLE + (local // 32).to(tl.int64) * lists + b * length
    bit = tl.full([BN], 1, tl.int64) << (local % 32)
    picks = PICKS + (b * length + start + local).to(tl.int64) * n
    for at in tl.range(0, n, BN):
        place = at + tl.arange(0, BN)
        token = tl.load(picks + place, mask=place < n, other=-1)
        tl.atomic_or(table + token, bit, mask=token >= 0, sem="relaxed")


@triton.jit
def words_at(chunk, first, number, words, lists, BW: tl.constexpr):
    """(where, which exist) of BW words of lists `number`, from word `first` of a chunk on: [BW, BL]."""
    word = first + tl.arange(0, BW)
    at = (chunk * words + word).to(tl.int64)[:, None] * lists + number[None, :]
    return at, (word < words)[:, None] & (number < lists)[None, :]


@triton.jit
def counted(TABLE, chunk, number, words, lists, BW: tl.constexpr, BL: tl.constexpr):
    """[BL]: picks of lists of a chunk."""
    count = tl.zeros([BL], tl.int32)
    for first in tl.range(0, words, BW):
        at, there = words_at(chunk, first, number, words, lists, BW)
        count += tl.sum(ones(tl.load(TABLE + at, mask=there, other=0).to(tl.int32)), 0)
    return count


@triton.jit(do_not_specialize=VARYING)
def count_picks(TABLE, COUNTS, lists: tl.int32, words: tl.int32, BW: tl.constexpr, BL: tl.constexpr):
    """COUNTS [chunks, tiles] int32: picks of each chunk in BL lists together."""
    pid = tl.program_id(0)
    tiles = (lists + BL - 1) // BL
    count = counted(TABLE, pid // tiles, pid % tiles * BL + tl.arange(0, BL), words, lists, BW, BL)
    tl.store(COUNTS + pid, tl.sum(count, 0))


@triton.jit(do_not_specialize=VARYING)
def place_words(TABLE, COUNTED, ENDS, lists: tl.int32, words: tl.int32, BW: tl.constexpr, BL: tl.constexpr):
    """Writes the upper halves of TABLE, and ENDS [chunks, lists] int32: picks of a chunk up to the end of each list.

    COUNTED [chunks, tiles]: picks of a chunk up to the end of each BL lists.
    """
    pid = tl.program_id(0)
    tiles = (lists + BL - 1) // BL
    chunk = pid // tiles
    number = pid % tiles * BL + tl.arange(0, BL)
    count = counted(TABLE, chunk, number, words, lists, BW, BL)
    ends = tl.cumsum(count, 0) + tl.load(COUNTED + pid) - tl.sum(count, 0)
    tl.store(ENDS + chunk.to(tl.int64) * lists + number, ends, mask=number < lists)
    before = ends - count
    for first in tl.range(0, words, BW):
        at, there = words_at(chunk, first, number, words, lists, BW)
        bits = tl.load(TABLE + at, mask=there, other=0)
        number_of = ones(bits.to(tl.int32))
        earlier = before[None, :] + tl.cumsum(number_of, 0) - number_of
        tl.store(TABLE + at, bits | (earlier.to(tl.int64) << 32), mask=there)
        before += tl.sum(number_of, 0)
