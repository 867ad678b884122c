"""Device functions that say which pairs of a tile are live, and which weights survive dropout.

Legend: BM x BN a tile of queries x keys, m and n places in it, C the constants of a kernel (call.Constants). Triton is imported
here: import this file lazily.
"""

# ruff: noqa: SIM102, SIM108 (compile-time branches stay statements)
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.common import BAND, BITS, MIXED


class Given(NamedTuple):
    """What else the pairs of one sequence need to be live.

    Attributes:
        EXCLUDED: as in `Component`.
        SEGMENTS, own_segments: those of the side that a loop visits, and those of the tokens that a program works for.
        length, stop: tokens of the side that a loop visits, and how many of them exist.
    """

    EXCLUDED: Any
    SEGMENTS: Any
    own_segments: Any
    length: Any
    stop: Any


NOWHERE = tl.constexpr(1 << 20)  # beyond every place of a tile


@triton.jit
def band_keeps(detail, offs_m, offs_n, TRANSPOSED: tl.constexpr):
    """The mask of a band tile, lo <= m - n <= hi, m <= last_m, n <= last_n; `detail` holds the four in its bytes.

    One unsigned comparison a pair, against bounds for each row (or column) of the tile.
    """
    lo = detail >> 24
    hi = (detail << 8) >> 24
    last_m = (detail >> 8) & 0xFF
    last_n = detail & 0xFF
    if TRANSPOSED:
        side, place = offs_n, offs_m
        first = tl.maximum(side + lo, 0)
        last = tl.minimum(side + hi, last_m)
        empty = (side > last_n) | (last < first)
    else:
        side, place = offs_m, offs_n
        first = tl.maximum(side - hi, 0)
        last = tl.minimum(side - lo, last_n)
        empty = (side > last_m) | (last < first)
    first = tl.where(empty, NOWHERE, first)
    return (place - first).to(tl.uint32) <= tl.where(empty, 0, last - first).to(tl.uint32)


@triton.jit
def bits_keep(detail, MASKS, offs_m, offs_n, BM: tl.constexpr, WORDS: tl.constexpr):
    """The mask of a tile with stored bits; `detail` is its number. Words are loaded once a query, not once a pair."""
    at = MASKS + detail.to(tl.int64) * (BM * WORDS) + offs_m * WORDS
    word = tl.load(at)
    for n in tl.static_range(1, WORDS):
        word = tl.where(offs_n // 32 == n, tl.load(at + n), word)
    return ((word >> (offs_n % 32)) & 1) != 0


@triton.jit
def masked(x, other, e, entries, detail, MASKS, C: tl.constexpr, MODE: tl.constexpr, TRANSPOSED: tl.constexpr):
    """x [BM, BN] (or transposed) where the mask of entry e keeps a pair, else `other`."""
    if TRANSPOSED:
        offs_m, offs_n = tl.arange(0, C.BM)[None, :], tl.arange(0, C.BN)[:, None]
    else:
        offs_m, offs_n = tl.arange(0, C.BM)[:, None], tl.arange(0, C.BN)[None, :]
    if MODE == BAND:
        x = tl.where(band_keeps(detail, offs_m, offs_n, TRANSPOSED), x, other)
    elif MODE == BITS:
        x = tl.where(bits_keep(detail, MASKS, offs_m, offs_n, C.BM, C.WORDS), x, other)
    elif MODE == MIXED:
        if C.HAS_BANDS:
            if (e >= entries.masked) & (e < entries.bits):
                x = tl.where(band_keeps(detail, offs_m, offs_n, TRANSPOSED), x, other)
        if C.HAS_BITS:
            if e >= entries.bits:
                x = tl.where(bits_keep(detail, MASKS, offs_m, offs_n, C.BM, C.WORDS), x, other)
    return x


@triton.jit
def included(x, other, EXCLUDED, i, j, length, EXCLUSIONS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """x, but `other` for excluded pairs: those with 0 <= number[i] - number[j] <= 1 for a row of EXCLUDED."""
    i = tl.minimum(tl.maximum(i, 0), length - 1)
    j = tl.minimum(tl.maximum(j, 0), length - 1)
    for number in tl.static_range(EXCLUSIONS):
        ours = tl.load(EXCLUDED + number * length + i)
        theirs = tl.load(EXCLUDED + number * length + j)
        if TRANSPOSED:
            distance = ours[None, :] - theirs[:, None]
        else:
            distance = ours[:, None] - theirs[None, :]
        x = tl.where((distance < 0) | (distance > 1), x, other)
    return x


@triton.jit
def kept(x, other, i, j, streamed, streamed_ok, given, C: tl.constexpr, TRANSPOSED: tl.constexpr):
    """x [BM, BN] (or transposed) where the call keeps the pair of query position i and key position j, else `other`.

    `streamed` are the token rows of the side that a loop visits: keys, or queries where tiles are transposed.
    """
    if C.CHECKED:
        x = tl.where(streamed_ok[None, :], x, other)
    if C.POSITIONAL:
        if TRANSPOSED:
            x = tl.where(i[None, :] >= j[:, None], x, other)
        else:
            x = tl.where(i[:, None] >= j[None, :], x, other)
    if given.EXCLUDED is not None:
        x = included(x, other, given.EXCLUDED, i, j, given.length, C.EXCLUSIONS, TRANSPOSED)
    if given.SEGMENTS is not None:
        same = tl.load(given.SEGMENTS + streamed, mask=streamed_ok, other=0)
        x = tl.where(given.own_segments[:, None] == same[None, :], x, other)
    return x


@triton.jit
def mix(x):
    """The bijection of reference.py on uint32."""
    x = x ^ (x >> 16)
    x = x * tl.full([], 0x7FEB352D, tl.uint32)
    x = x ^ (x >> 15)
    x = x * tl.full([], 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def dropout_rows(SEED, batch_head, i):
    """The part of the dropout hash that depends on query positions i."""
    seed = tl.load(SEED).to(tl.uint32)
    head = mix(seed + tl.full([], 0x9E3779B9, tl.uint32) * (batch_head + 1).to(tl.uint32))
    return mix(head ^ (i.to(tl.uint32) * tl.full([], 0x85EBCA6B, tl.uint32)))


@triton.jit
def dropout_keeps(rows, j, threshold):
    """Whether weights survive; `rows` and j broadcast against each other."""
    bits = mix(rows ^ (j.to(tl.uint32) * tl.full([], 0xC2B2AE35, tl.uint32)))
    return (bits >> 8).to(tl.int32) >= threshold
