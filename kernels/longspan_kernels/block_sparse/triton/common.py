"""Device functions that the kernels over rows and over columns share: what a program works for, its loop over tiles, addresses.

Legend: BM x BN a tile of queries x keys, m and n places in it, C the constants of a kernel (call.Constants). A program works
for one tile row (the queries of one tile) or, in the pass over columns, for one tile column; both are called a tile row here.
Triton is imported here: import this file lazily.
"""

# ruff: noqa: SIM108, SIM109 (compile-time branches stay statements)
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.libdevice import fast_log2f

from longspan_kernels.launch.launcher import collecting

# What a loop over entries visits: full tiles, those whose mask is a band lo <= m - n <= hi, those with stored bits, or all
# of them, telling them apart as it goes.
FULL = tl.constexpr(0)
BAND = tl.constexpr(1)
BITS = tl.constexpr(2)
MIXED = tl.constexpr(3)
LOG2E = tl.constexpr(1.4426950408889634)
READ_AHEAD = tl.constexpr(4)  # stages of a loop over the partial results of a tile row, so that it does not wait for each
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # as triton.jit decides, when it is applied
LN2 = tl.constexpr(0.6931471805599453)
LARGE = tl.constexpr(32768.0)  # a log-sum-exp up to which a float32 difference from a score is good to a hundredth
ROUNDING = tl.constexpr(6 * 2.0**-24)  # of that difference, relative to the score: scaling, two changes of base, merges
# Arguments that follow the lengths: a kernel compiled for one value serves all. (Triton specialises what tuples hold, so these
# come one by one.)
VARYING = [
    *("q_len", "k_len", "q_start", "k_start", "tile_rows", "batch", "heads", "batch_groups", "threshold", "flags"),
    *("bias_first", "bias_h", "bias_row", "step", "q_per", "k_per", "q_index_stride", "k_index_stride", "index_stride"),
    *("sums_h", "sums_row", "sums_first", "leaves_delta", "x_b", "x_h", "x_len", "x_start", "o_b", "o_h", "do_b", "do_h"),
]


class Entries(NamedTuple):
    """The entries of one tile row: the first, the first masked, the first bit-masked, the end, and the tile of the first."""

    first: Any
    masked: Any
    bits: Any
    stop: Any
    tile: Any


class Stream(NamedTuple):
    """One head of a tensor whose tiles a loop loads: a pointer to it, or a descriptor of the tensor with its number (b, h)."""

    X: Any
    stride: Any
    b: Any
    h: Any


class Side(NamedTuple):
    """The queries or the keys of a program, and where the tokens of their tiles lie.

    With it go the constants B, places a tile, and RUN: tokens of a tile lie in runs of so many, one run each `step`; RUN is 0
    where they are consecutive or looked up. (Triton 3.6 makes numbers of constants in a tuple that has a name.)

    Attributes:
        INDEX, index_stride, group: the token row at each place, -1 for none, in the order of a group; None where rows are
            computed.
        start: the token row of the first place.
        step, per: distance of runs; with runs of one token (residue classes), tiles a class.
    """

    INDEX: Any
    index_stride: Any
    group: Any
    start: Any
    step: Any
    per: Any


def interprets_bfloat16(x: torch.Tensor) -> bool:
    """Whether q is bfloat16 and runs under Triton's interpreter, which computes garbage from it: it keeps bfloat16 as whole
    numbers. Callers then pass float32, which holds the same numbers."""
    return bool(INTERPRETED.value) and x.dtype == torch.bfloat16 and x.device.type == "cpu" and not collecting()


@triton.jit
def work_item(visits, heads, tile_rows, batch, batch_groups, C: tl.constexpr):
    """What this program does: (b, head, tile row, partial result or -1, group, served, record).

    Heads are those of the keys in the pass over columns. With a list of items a program serves one of them, else one tile row.
    `record` points at eight numbers: first entry, first masked one, first bit-masked one, end, tile of the first entry, head,
    tile row, partial.
    """
    pid = tl.program_id(0)
    served = pid >= 0
    if visits.ITEMS is None:
        # A grid of three dimensions would spare these divisions, but made dense patterns of D = 128 1% slower.
        tile_row = pid % tile_rows
        rest = pid // tile_rows
        head = rest % heads
        b = rest // heads
        partial = -1
        group = 0
        if not C.ONE_GROUP:
            group = tl.load(visits.GROUP + head)
            served = group >= 0
            group = tl.maximum(group, 0) + b * batch_groups
            record = visits.RECORDS + (group.to(tl.int64) * tile_rows + tile_row) * 8
        else:
            record = visits.RECORDS + tile_row.to(tl.int64) * 8
    else:
        item, b = pid, pid * 0
        if batch > 1:  # the loads below wait for a division
            item = pid // batch
            b = pid - item * batch
        record = visits.ITEMS + item.to(tl.int64) * 8
        head = tl.load(record + 5)
        tile_row = tl.load(record + 6)
        partial = tl.load(record + 7)
        partial = tl.where(partial < 0, -1, partial * batch + b)
        group = 0
    return b, head, tile_row, partial, group, served, record


@triton.jit
def entries_of(record, served):
    """The entries that a record tells of; an empty range where the program has no work."""
    first = tl.load(record)
    masked = tl.load(record + 1)
    bits = tl.load(record + 2)
    stop = tl.where(served, tl.load(record + 3), first)
    first_tile = tl.load(record + 4)
    return Entries(first, masked, bits, stop, first_tile)


@triton.jit
def split_of(SPLITS, batch, PARTS: tl.constexpr):
    """The split tile row of a program: (b, part of the tile, head, tile row, first partial result, how many there are)."""
    pid = tl.program_id(0)
    part = pid % PARTS
    pid = pid // PARTS
    b = pid % batch
    at = SPLITS + (pid // batch).to(tl.int64) * 4
    return b, part, tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def part_of(mode, entries):
    """The entries [begin, end) that the loop of a mode visits."""
    lowest = entries.masked if mode == 1 else entries.bits if mode == 2 else entries.first
    highest = entries.masked if mode == 0 else entries.bits if mode == 1 else entries.stop
    return tl.maximum(entries.first, lowest), tl.minimum(entries.stop, highest)


@triton.jit
def ends(limits, b, q_len, k_len):
    """The number of queries and of keys of sequence b."""
    q_stop = q_len
    k_stop = k_len
    if limits.Q_LENGTHS is not None:
        q_stop = end_of(limits.Q_LENGTHS, b, q_len)
    if limits.K_LENGTHS is not None:
        k_stop = end_of(limits.K_LENGTHS, b, k_len)
    return q_stop, k_stop


@triton.jit
def head_of(X, b, h, strides, C: tl.constexpr):
    """A pointer to head h of sequence b. The alignment hint lets the compiler use wide loads."""
    ALIGN: tl.constexpr = C.ALIGN  # Triton 3.6 takes no bare number here
    return X + tl.multiple_of(b.to(tl.int64) * strides.b + h.to(tl.int64) * strides.h, ALIGN)


@triton.jit
def wide(stride):
    """A stride as int64. Triton would pass one that fits 32 bits as int32, and a stride of 1 as a constant."""
    return tl.zeros([], tl.int64) + stride


@triton.jit
def begin_entries(visits, first, stop, first_tile, MODE: tl.constexpr):
    """The state that a loop over entries carries: (next tile, pointer to the number of the tile after it, pointer to the mask
    details)."""
    upcoming = first_tile
    # Pointers of their own: INDEX + e would make e a number of 64 bits.
    AHEAD = visits.INDEX + first + 1
    DETAILS = AHEAD  # of no use to full tiles
    if MODE != FULL:
        DETAILS = visits.DETAIL + first
    if MODE == BAND or MODE == BITS:
        upcoming = tl.load(visits.INDEX + first, mask=stop > first, other=0)
    return upcoming, AHEAD, DETAILS


@triton.jit
def next_entry(upcoming, AHEAD, DETAILS, e, first, stop, C: tl.constexpr, MODE: tl.constexpr):
    """(tile, detail of its mask) of entry e, and the loop's state for the next entry."""
    if C.CONTIGUOUS and MODE == FULL:
        tile = upcoming + (e - first)
    else:
        # Read one entry ahead: the loads of keys wait for this number. Lists made on the host end with a sentinel.
        tile = upcoming
        if C.CHECKED:
            upcoming = tl.load(AHEAD, mask=e + 1 < stop, other=0)
        else:
            upcoming = tl.load(AHEAD)
        AHEAD += 1
    detail = 0
    if MODE != FULL:
        detail = tl.load(DETAILS)
        DETAILS += 1
    return tile, detail, upcoming, AHEAD, DETAILS


@triton.jit
def quick_log2(x):
    """log2 of x >= 1 to 22 bits after the point or 22 digits, whichever is more: one instruction instead of thirty."""
    if INTERPRETED:
        y = tl.log2(x)
    else:
        y = fast_log2f(x)
    return y


@triton.jit
def within(x, stop):
    """0 <= x < stop, in one comparison."""
    return x.to(tl.uint32, bitcast=True) < stop.to(tl.uint32, bitcast=True)


@triton.jit
def end_of(LENGTHS, b, length):
    """The number of tokens of sequence b, clamped to [0, length] before it becomes an int32."""
    return tl.minimum(tl.maximum(tl.load(LENGTHS + b), 0), length).to(tl.int32)


@triton.jit
def allowing_for_rounding(lse):
    """A log-sum-exp to recompute weights by, so that the weight of a score that outweighs all others comes out as 1 at least.

    The difference of a score and an lse near 10**8 is off by some units, whose exponential is anything. Weights are held to 1
    after this, so a lone large one is exact, and one among near equals is off by no more than rounding has it in any case.
    """
    return lse - tl.maximum(tl.abs(lse) - LARGE, 0.0) * ROUNDING


@triton.jit
def scores_of(a, b, EXACT: tl.constexpr):
    """The products of rows of a and columns of b, with the same bits whichever pass asks and whichever side is a.

    A GPU adds them up in the order of the width; the interpreter's library in any, so that one has digits to spare.
    """
    if INTERPRETED:
        s = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64).to(tl.float32)
    else:
        s = tl.dot(a, b, input_precision="ieee" if EXACT else "tf32")
    return s


@triton.jit
def weights(s, most):
    """exp2 of scores less their log-sum-exp, clamped to `most`, which only rounding exceeds; NaN stays NaN."""
    return tl.exp2(tl.minimum(s, most, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def tokens_of(side, tile, B: tl.constexpr, RUN: tl.constexpr):
    """(first token row, all token rows) of a tile; by an index there is no first row. See `Side`."""
    offs = tl.arange(0, B)
    if RUN == 1:
        base = side.start + tile // side.per + (tile % side.per) * (B * side.step)
        token = base + offs * side.step
    elif RUN > 1:
        base = side.start + tile * (B // RUN * side.step)
        token = base + (offs // RUN * side.step + offs % RUN)
    elif side.INDEX is None:
        base = tile * B + side.start
        token = base + offs
    else:
        base = 0
        token = tl.load(side.INDEX + side.group * side.index_stride + tile * B + offs)
    return base, token


@triton.jit
def addresses(X, token, base, stride, side, offs_d, B: tl.constexpr, RUN: tl.constexpr):
    """Pointers to the rows `token` of X [T, D], [B, BD]."""
    offs = tl.arange(0, B)
    if RUN == 1:
        at = X + base.to(tl.int64) * stride + (offs.to(tl.int64)[:, None] * (stride * side.step) + offs_d[None, :])
    elif RUN > 1:
        row = (offs // RUN).to(tl.int64) * (stride * side.step) + offs % RUN * stride
        at = X + base.to(tl.int64) * stride + (row[:, None] + offs_d[None, :])
    elif side.INDEX is not None:
        at = X + token.to(tl.int64)[:, None] * stride + offs_d[None, :]
    else:
        # One 64-bit product a tile; what remains inside it fits 32 bits.
        at = X + base.to(tl.int64) * stride + (offs[:, None] * stride.to(tl.int32) + offs_d[None, :])
    return at


@triton.jit
def load_tile(
    X, token, base, ok, stride, side, offs_d, D: tl.constexpr, B: tl.constexpr, RUN: tl.constexpr, CHECK: tl.constexpr
):
    """Rows `token` of X [T, D] as [B, BD]; 0 where not ok (only looked at under CHECK) and past D."""
    at = addresses(X, token, base, stride, side, offs_d, B, RUN)
    BD: tl.constexpr = offs_d.shape[0]
    if CHECK:
        if D == BD:
            tile = tl.load(at, mask=ok[:, None], other=0.0)
        else:
            tile = tl.load(at, mask=ok[:, None] & (offs_d < D)[None, :], other=0.0)
    else:
        if D == BD:
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=(offs_d < D)[None, :], other=0.0)
    return tile


@triton.jit
def load_own(X, token, base, ok, last, stride, side, offs_d, B: tl.constexpr, RUN: tl.constexpr, C: tl.constexpr):
    """The rows that a program works for, [B, BD].

    Rows before the first or past the last are clamped to it: nobody stores their results, and clamping takes fewer instructions
    than zeros. Where tokens of any tile may not exist (CHECKED), such rows are 0.
    """
    if C.CHECKED or side.INDEX is not None or RUN > 0:
        tile = load_tile(X, token, base, ok, stride, side, offs_d, C.D, B, RUN, True)
    else:
        near = tl.maximum(tl.minimum(tl.arange(0, B), last - base), -base)
        at = X + base.to(tl.int64) * stride + (near[:, None] * stride.to(tl.int32) + offs_d[None, :])
        tile = tl.load(at) if C.D == C.BD else tl.load(at, mask=(offs_d < C.D)[None, :], other=0.0)
    return tile


@triton.jit
def widened(x):
    """A tensor in float32. Of two bfloat16 in a register one instruction each makes two float32, where Triton takes three."""
    if INTERPRETED or x.dtype != tl.bfloat16:
        y = x.to(tl.float32)
    else:
        pair: tl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
        bits = tl.inline_asm_elementwise(pair, "=r,=r,r", [x], dtype=tl.int32, is_pure=True, pack=2)
        y = bits.to(tl.float32, bitcast=True)
    return y


@triton.jit
def streamed_head(X, b, h, strides, C: tl.constexpr):
    """As `head_of`; itself where X is a descriptor, which has all heads."""
    if not C.BY_TMA:
        X = head_of(X, b, h, strides, C)
    return X


@triton.jit
def streamed_tile(stream, tile, base, token, ok, side, B: tl.constexpr, RUN: tl.constexpr, C: tl.constexpr, MODE: tl.constexpr):
    """A tile [B, BD] that a loop visits, loaded by descriptor (0 outside the tensor) or by addresses."""
    if C.BY_TMA:
        if RUN == 1:
            x = stream.X.load([stream.b, stream.h, (tile % side.per) * B, side.start + tile // side.per, 0])
        elif RUN > 1:
            x = stream.X.load([stream.b, stream.h, tile * (B // RUN), side.start, 0])
        else:
            x = stream.X.load([stream.b, stream.h, base, 0])
        x = x.reshape([B, C.BD])
    else:
        CHECK: tl.constexpr = C.CHECKED or MODE != FULL
        x = load_tile(stream.X, token, base, ok, stream.stride, side, tl.arange(0, C.BD), C.D, B, RUN, CHECK)
    return x
