"""Device functions that the kernels over rows and over columns share: what a program works for, its loop over tiles, addresses.

Legend: BM x BN a tile of queries x keys, m and n places in it, C the constants of a kernel (call.Constants). A program works
for one tile row (the queries of one tile) or, in the pass over columns, for one tile column; both are called a tile row here.
Triton is imported here: import this file lazily.
"""

# ruff: noqa: SIM108, SIM109 (compile-time branches stay statements)
from __future__ import annotations

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


def interprets_bfloat16(x: torch.Tensor) -> bool:
    """Whether q is bfloat16 and runs under Triton's interpreter, which computes garbage from it: it keeps bfloat16 as whole
    numbers. Callers then pass float32, which holds the same numbers."""
    return bool(INTERPRETED.value) and x.dtype == torch.bfloat16 and x.device.type == "cpu" and not collecting()


@triton.jit
def work_item(visits, heads, tile_rows, batch, batch_groups, C: tl.constexpr):
    """What this program does: (b, head, tile row, partial result or -1, group, served, entries).

    Heads are those of the keys in the pass over columns. With a list of items a program serves one of them, else one tile row.
    `entries` points at a record of 8: first entry, first masked one, first bit-masked one, end, tile of the first entry, head,
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
            entries = visits.RECORDS + (group.to(tl.int64) * tile_rows + tile_row) * 8
        else:
            entries = visits.RECORDS + tile_row.to(tl.int64) * 8
    else:
        item, b = pid, pid * 0
        if batch > 1:  # the loads below wait for a division
            item = pid // batch
            b = pid - item * batch
        entries = visits.ITEMS + item.to(tl.int64) * 8
        head = tl.load(entries + 5)
        tile_row = tl.load(entries + 6)
        partial = tl.load(entries + 7)
        partial = tl.where(partial < 0, -1, partial * batch + b)
        group = 0
    return b, head, tile_row, partial, group, served, entries


@triton.jit
def entries_of(entries, served):
    """(first, first masked, first bit-masked, end, tile of the first) entry of a record; an empty range where the program has
    no work."""
    first = tl.load(entries)
    masked_from = tl.load(entries + 1)
    bits_from = tl.load(entries + 2)
    stop = tl.where(served, tl.load(entries + 3), first)
    first_tile = tl.load(entries + 4)
    return first, masked_from, bits_from, stop, first_tile


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
def part_of(mode, first, masked_from, bits_from, stop):
    """The entries [begin, end) that the loop of a mode visits."""
    lowest = masked_from if mode == 1 else bits_from if mode == 2 else first
    highest = masked_from if mode == 0 else bits_from if mode == 1 else stop
    return tl.maximum(first, lowest), tl.minimum(stop, highest)


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
def tokens_of(INDEX, u, index_stride, tile, origin, step, per, B: tl.constexpr, STEPPED: tl.constexpr):
    """(first token row, all token rows) of a tile; a row below 0 or past the end is no token.

    In natural order rows are consecutive. STEPPED: runs of so many tokens, one run each `step`; with runs of one token, `per`
    tiles a residue class. Otherwise rows come from the index, and there is no first row.
    """
    offs = tl.arange(0, B)
    if STEPPED == 1:
        base = origin + tile // per + (tile % per) * (B * step)
        token = base + offs * step
    elif STEPPED > 1:
        base = origin + tile * (B // STEPPED * step)
        token = base + (offs // STEPPED * step + offs % STEPPED)
    elif INDEX is None:
        base = tile * B + origin
        token = base + offs
    else:
        base = 0
        token = tl.load(INDEX + u * index_stride + tile * B + offs)
    return base, token


@triton.jit
def addresses(X, token, base, stride, step, offs_d, B: tl.constexpr, INDEXED: tl.constexpr, STEPPED: tl.constexpr):
    """Pointers to the rows `token` of X [T, D], [B, BD]."""
    offs = tl.arange(0, B)
    if STEPPED == 1:
        at = X + base.to(tl.int64) * stride + (offs.to(tl.int64)[:, None] * (stride * step) + offs_d[None, :])
    elif STEPPED > 1:
        row = (offs // STEPPED).to(tl.int64) * (stride * step) + offs % STEPPED * stride
        at = X + base.to(tl.int64) * stride + (row[:, None] + offs_d[None, :])
    elif INDEXED:
        at = X + token.to(tl.int64)[:, None] * stride + offs_d[None, :]
    else:
        # One 64-bit product a tile; what remains inside it fits 32 bits.
        at = X + base.to(tl.int64) * stride + (offs[:, None] * stride.to(tl.int32) + offs_d[None, :])
    return at


@triton.jit
def load_tile(
    X,
    token,
    base,
    ok,
    stride,
    step,
    offs_d,
    D: tl.constexpr,
    BD: tl.constexpr,
    B: tl.constexpr,
    CHECK: tl.constexpr,
    INDEXED: tl.constexpr,
    STEPPED: tl.constexpr,
):
    """Rows `token` of X [T, D] as [B, BD]; 0 where not ok (only looked at under CHECK) and past D."""
    at = addresses(X, token, base, stride, step, offs_d, B, INDEXED, STEPPED)
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
def load_own(
    X,
    token,
    base,
    ok,
    last,
    stride,
    step,
    offs_d,
    C: tl.constexpr,
    B: tl.constexpr,
    INDEXED: tl.constexpr,
    STEPPED: tl.constexpr,
):
    """The rows that a program works for, [B, BD].

    Rows before the first or past the last are clamped to it: nobody stores their results, and clamping takes fewer instructions
    than zeros. Where tokens of any tile may not exist (CHECKED), such rows are 0.
    """
    if C.CHECKED or INDEXED or STEPPED > 0:
        tile = load_tile(X, token, base, ok, stride, step, offs_d, C.D, C.BD, B, True, INDEXED, STEPPED)
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
def streamed_tile(
    X,
    b,
    h,
    tile,
    base,
    token,
    ok,
    start,
    stride,
    step,
    per,
    B: tl.constexpr,
    INDEXED: tl.constexpr,
    STEPPED: tl.constexpr,
    C: tl.constexpr,
    MODE: tl.constexpr,
):
    """A tile [B, BD] that a loop visits, loaded by descriptor (0 outside the tensor) or by addresses."""
    if C.BY_TMA:
        if STEPPED == 1:
            x = X.load([b, h, (tile % per) * B, start + tile // per, 0])
        elif STEPPED > 1:
            x = X.load([b, h, tile * (B // STEPPED), start, 0])
        else:
            x = X.load([b, h, base, 0])
        x = x.reshape([B, C.BD])
    else:
        CHECK: tl.constexpr = C.CHECKED or MODE != FULL
        x = load_tile(X, token, base, ok, stride, step, tl.arange(0, C.BD), C.D, C.BD, B, CHECK, INDEXED, STEPPED)
    return x
