"""The Triton kernel that selects the best tokens of each query from its index scores. Triton is imported here: import this file
lazily.

One program a query. The n-th best of the lanes (see `index_scores`) is a bound that n tokens or more reach. One pass over the
row marks them, a bit each, and they are collected from the bits: so few instructions fall on a score. The n-th best of what is
collected is found bit by bit in registers. Where more reach the bound than there is room for, many equal it or it is found over
the row; the tokens then come from the bits alone.

Legend: n picks a query, M lanes, ROOM tokens that may be collected, MARKED scores are marked at a time and WORDS words of 32
marks read, BLOCK anything else.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.selected.triton.common import tokens_of
from longspan_kernels.selected.triton.index_scores import LEAST, NEVER
from longspan_kernels.selected.triton.token_lists import ones


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
def nth_best(keys, n, low, most):
    """A number, `low` or more, that n to `most` whole numbers reach; the n-th largest where equals leave no such number."""
    known, bit = common_bits(low, tl.max(keys, 0), tl.sum((keys >= 0).to(tl.int32), 0) >= n)
    while bit > 0:
        trial = known | bit
        count = tl.sum((keys >= trial).to(tl.int32), 0)
        known = tl.where(count >= n, trial, known)
        bit = tl.where((count >= n) & (count <= most), 0, bit >> 1)
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
    """The n-th largest score, between `low` and `high`."""
    known, bit = common_bits(low, high, reaching(ROW, visible, width, 0, BLOCK) >= n)
    while bit > 0:
        trial = known | bit
        known = tl.where(reaching(ROW, visible, width, trial, BLOCK) >= n, trial, known)
        bit = bit >> 1
    return known


@triton.jit
def ranks(keys, least, equals):
    """Of scores in the order of tokens: (which are above `least` or among its first `equals` equals, their place, how many)."""
    over = (keys > least).to(tl.int32)
    same = ((keys == least) & (keys > NEVER)).to(tl.int32)
    counted = tl.cumsum(over + (same << 16), 0)
    sames = counted >> 16
    taken = (over > 0) | ((same > 0) & (sames <= equals))
    total = tl.sum(over + (same << 16), 0)
    place = (counted & 0xFFFF) + tl.minimum(sames, equals) - 1
    return taken, place, (total & 0xFFFF) + tl.minimum(total >> 16, equals)


@triton.jit
def mark(ROW, BITS, visible, width, least, BLOCK: tl.constexpr):
    """BITS: which scores of a row are `least` or more, 32 a word. Those after `visible` may be anything."""
    word = tl.arange(0, BLOCK // 32)
    bit = tl.arange(0, 32)[None, :]
    for start in tl.range(0, visible, BLOCK):
        column = start + word[:, None] * 32 + bit
        keys = tl.load(ROW + column, mask=column < width, other=LEAST)
        bits = tl.sum((keys >= least).to(tl.int32) << bit, 1)
        tl.store(BITS + start // 32 + word, bits, mask=start + word * 32 < width)


@triton.jit
def marked(BITS, start, visible, WORDS: tl.constexpr):
    """(the first column of each word, its marks, how many) of WORDS words from column `start` on."""
    first = start + 32 * tl.arange(0, WORDS)
    left = tl.minimum(tl.maximum(visible - first, 0), 32)
    bits = tl.load(BITS + start // 32 + tl.arange(0, WORDS), mask=left > 0, other=0)
    bits = tl.where(left < 32, bits & ((1 << tl.minimum(left, 31)) - 1), bits)
    return first, bits, ones(bits)


@triton.jit
def lowest_of(bits):
    """(the lowest bit that is set, its number)."""
    lowest = bits & -bits
    exponent = lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23  # of a power of two, maybe negative
    return lowest, (exponent & 0xFF) - 127


@triton.jit
def collect(BITS, FOUND, visible, ROOM: tl.constexpr, WORDS: tl.constexpr):
    """The columns marked in BITS, in rising order, to FOUND; returns how many they are, or more than ROOM, for which there is
    no more room."""
    count = 0
    start = 0
    while (start < visible) & (count <= ROOM):
        first, bits, number = marked(BITS, start, visible, WORDS)
        place = count + tl.cumsum(number, 0) - number
        count += tl.sum(number, 0)
        for _ in tl.range(0, tl.max(number, 0)):
            lowest, at = lowest_of(bits)
            tl.store(FOUND + place, first + at, mask=(bits != 0) & (place < ROOM))
            place += 1
            bits = bits ^ lowest
        start += 32 * WORDS
    return count


@triton.jit
def count_marks(BITS, visible, WORDS: tl.constexpr):
    count = tl.zeros([WORDS], tl.int32)
    for start in tl.range(0, visible, 32 * WORDS):
        _, _, number = marked(BITS, start, visible, WORDS)
        count += number
    return tl.sum(count, 0)


@triton.jit
def collect_with_equals(BITS, ABOVE, OUT, visible, equals, WORDS: tl.constexpr):
    """The columns marked in ABOVE and the first `equals` of the others marked in BITS, in rising order, to OUT; returns how
    many. BITS hold all marks of ABOVE."""
    overs = 0
    sames = 0
    for start in tl.range(0, visible, 32 * WORDS):
        first, bits, number = marked(BITS, start, visible, WORDS)
        _, above, number_above = marked(ABOVE, start, visible, WORDS)
        both = number_above + ((number - number_above) << 16)
        before = tl.cumsum(both, 0) - both
        over = overs + (before & 0xFFFF)
        same = sames + (before >> 16)
        total = tl.sum(both, 0)
        overs += total & 0xFFFF
        sames += total >> 16
        for _ in tl.range(0, tl.max(number, 0)):
            lowest, at = lowest_of(bits)
            is_over = ((above & lowest) != 0).to(tl.int32)
            taken = (bits != 0) & ((is_over > 0) | (same < equals))
            tl.store(OUT + over + tl.minimum(same, equals), first + at, mask=taken)
            over += is_over
            same += 1 - is_over
            bits = bits ^ lowest
    return overs + tl.minimum(sames, equals)


@triton.jit(do_not_specialize=["length", "first_b", "first", "rows", "padded", "key_tiles"])
def best_tokens(
    SCORES,
    LANES,
    LENGTHS,
    BITS,
    FOUND,
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
    MARKED: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BN: tl.constexpr,
):
    """OUT [B, T, n]: the best tokens of `rows` queries from `first` on in rising order, then -1.

    SCORES have `padded` rows of key_tiles * BN a sequence. Of each query BITS hold two of each score, and FOUND ROOM tokens.
    """
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
        bits = BITS + pid.to(tl.int64) * key_tiles * (BN // 32) * 2
        found = FOUND + pid.to(tl.int64) * ROOM
        lane = tl.arange(0, M)
        lanes = tl.where(lane < visible, tl.load(LANES + at * M + lane), LEAST)
        best = tl.max(lanes, 0)
        low = NEVER + 1
        if n <= M:
            low = tl.maximum(nth_best(lanes, n, tl.min(lanes, 0), n + n // 8), NEVER + 1)
        mark(scores, bits, visible, width, low, MARKED)
        tl.debug_barrier()
        written = 0
        count = 0
        if low == best:  # all that reach the bound equal it: the first of them
            written = tl.minimum(collect(bits, out, visible, n, WORDS), n)
        else:
            count = collect(bits, found, visible, ROOM, WORDS)
            tl.debug_barrier()
        if count > ROOM:
            # Mostly many equal the bound: then it is the n-th best itself.
            above = bits + width // 32
            mark(scores, above, visible, width, low + 1, MARKED)
            tl.debug_barrier()
            over = count_marks(above, visible, WORDS)
            if over >= n:
                least = nth_best_of_row(scores, visible, width, n, low + 1, best, BLOCK)
                tl.debug_barrier()
                mark(scores, bits, visible, width, least, MARKED)
                mark(scores, above, visible, width, least + 1, MARKED)
                tl.debug_barrier()
                over = count_marks(above, visible, WORDS)
            written = collect_with_equals(bits, above, out, visible, n - over, WORDS)
        elif low < best:
            number = tl.arange(0, ROOM)
            column = tl.load(found + number)
            keys = tl.load(scores + column, mask=number < count, other=LEAST)
            least = nth_best(keys, n, low, n)
            taken, place, written = ranks(keys, least, n - tl.sum((keys > least).to(tl.int32), 0))
            tl.store(out + place, column, mask=taken)
        for start in tl.range(written, n, BLOCK):  # scores of -inf are never picked
            column = start + tl.arange(0, BLOCK)
            tl.store(out + column, -1, mask=column < n)
