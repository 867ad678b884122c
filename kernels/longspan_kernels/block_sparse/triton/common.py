"""Device functions that the forward and the backward share: work items, tokens of a tile, masks, dropout bits.

Legend: BM x BN a tile of queries x keys, m and n places in it. Triton is imported here: import this file lazily.
"""

# ruff: noqa: SIM102, SIM108 (compile-time branches stay statements)
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
READ_AHEAD = tl.constexpr(4)  # stages of a loop over the pieces of a cut line, so that it does not wait for each
NOWHERE = tl.constexpr(1 << 20)  # beyond every place of a tile
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # as triton.jit decides, when it is applied
LN2 = tl.constexpr(0.6931471805599453)
LARGE = tl.constexpr(32768.0)  # a log-sum-exp up to which a float32 difference from a score is good to a hundredth
ROUNDING = tl.constexpr(6 * 2.0**-24)  # of that difference, relative to the score: scaling, two changes of base, merges
# Arguments that follow the lengths: a kernel compiled for one value serves all.
VARYING = [
    "q_len", "k_len", "q_start", "k_start", "lines", "batch", "owners", "batch_groups", "threshold", "bias_first",
    "bias_h", "bias_row", "q_index_stride", "k_index_stride", "step", "q_per", "k_per", "sums_h", "sums_row",
    "sums_first", "q_b", "q_h", "k_b", "k_h", "v_b", "v_h", "o_b", "o_h", "do_b", "do_h", "dq_b", "dq_h", "dk_b",
    "dk_h", "dv_b", "dv_h", "x_b", "x_h", "x_len", "x_start", "index_stride", "leaves_delta", "flags",
]  # fmt: skip


def interprets_bfloat16(x: torch.Tensor) -> bool:
    """Whether Triton's interpreter is to run on bfloat16, with which it computes nonsense: it keeps them as whole numbers.

    Callers hand it float32, which holds the same numbers.
    """
    return bool(INTERPRETED.value) and x.dtype == torch.bfloat16 and x.device.type == "cpu" and not collecting()


@triton.jit
def work_item(ITEMS, LINES, GROUP, owners, lines, batch, batch_groups, ONE_GROUP: tl.constexpr):
    """What this program does: (b, owner, line, slot of its partial result or -1, group, served, entries).

    An owner is a head (rows) or a key head (columns). Without a list of items, one program serves each line. `entries` points
    at a record of 8: first entry, first masked one, first bit-masked one, end, tile of the first entry, owner, line, slot.
    """
    pid = tl.program_id(0)
    served = pid >= 0
    if ITEMS is None:
        # A grid of three dimensions would spare these divisions, but made dense patterns of D = 128 1% slower.
        line = pid % lines
        rest = pid // lines
        owner = rest % owners
        b = rest // owners
        slot = -1
        group = 0
        if not ONE_GROUP:
            group = tl.load(GROUP + owner)
            served = group >= 0
            group = tl.maximum(group, 0) + b * batch_groups
            entries = LINES + (group.to(tl.int64) * lines + line) * 8
        else:
            entries = LINES + line.to(tl.int64) * 8
    else:
        item, b = pid, pid * 0
        if batch > 1:  # the loads below wait for a division
            item = pid // batch
            b = pid - item * batch
        entries = ITEMS + item.to(tl.int64) * 8
        owner = tl.load(entries + 5)
        line = tl.load(entries + 6)
        slot = tl.load(entries + 7)
        slot = tl.where(slot < 0, -1, slot * batch + b)
        group = 0
    return b, owner, line, slot, group, served, entries


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
    """The end of sequence b, brought between 0 and `length` before it is one of 32 bits."""
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
    """exp2 of scores less their log-sum-exp, which only rounding brings above `most`; NaN stays."""
    return tl.exp2(tl.minimum(s, most, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def following(AHEAD, e, stop, CHECKED: tl.constexpr):
    """The tile of the entry after e; anything after the last one, which lists made on the host have room to read."""
    if CHECKED:
        tile = tl.load(AHEAD, mask=e + 1 < stop, other=0)
    else:
        tile = tl.load(AHEAD)
    return tile


@triton.jit
def tokens_of(INDEX, u, index_stride, tile, origin, step, per, B: tl.constexpr, STEPPED: tl.constexpr):
    """(first token row, all token rows) of a tile; a row below 0 or past the end is no token.

    Natural order: consecutive. STEPPED: runs of so many tokens, one each `step`; of one token, `per` tiles a residue class.
    Else as the index says (no first row then).
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
def addresses(
    X, token, base, stride, step, offs_d, B: tl.constexpr, INDEXED: tl.constexpr, STEPPED: tl.constexpr
):  # fmt: skip
    """Where rows `token` of X [T, D] lie, [B, BD]."""
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
    X, token, base, ok, stride, step, offs_d, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr, CHECK: tl.constexpr,
    INDEXED: tl.constexpr, STEPPED: tl.constexpr,
):  # fmt: skip
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
    X, token, base, ok, last, stride, step, offs_d, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr,
    CHECKED: tl.constexpr, INDEXED: tl.constexpr, STEPPED: tl.constexpr,
):  # fmt: skip
    """The rows that a program works for, [B, BD]. Those before the first and past the last hold it again: nobody stores what
    comes of them, and it takes fewer instructions than zeros. Under CHECKED they are 0."""
    if CHECKED or INDEXED or STEPPED > 0:
        tile = load_tile(X, token, base, ok, stride, step, offs_d, D, BD, B, True, INDEXED, STEPPED)
    else:
        near = tl.maximum(tl.minimum(tl.arange(0, B), last - base), -base)
        at = X + base.to(tl.int64) * stride + (near[:, None] * stride.to(tl.int32) + offs_d[None, :])
        tile = tl.load(at) if D == BD else tl.load(at, mask=(offs_d < D)[None, :], other=0.0)
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
def copied_tile(X, b, h, tile, base, origin, per, B: tl.constexpr, BD: tl.constexpr, STEPPED: tl.constexpr):
    """A tile [B, BD] by descriptor; what lies outside the tensor comes as 0."""
    if STEPPED == 1:
        x = X.load([b, h, (tile % per) * B, origin + tile // per, 0])
    elif STEPPED > 1:
        x = X.load([b, h, tile * (B // STEPPED), origin, 0])
    else:
        x = X.load([b, h, base, 0])
    return x.reshape([B, BD])


@triton.jit
def band_keeps(detail, offs_m, offs_n, TRANSPOSED: tl.constexpr):
    """The mask of a band tile, lo <= m - n <= hi, m <= last_m, n <= last_n; `detail` holds the four in its bytes.

    One unsigned comparison a pair, against bounds for each line of the tile.
    """
    lo = detail >> 24
    hi = (detail << 8) >> 24
    last_m = (detail >> 8) & 0xFF
    last_n = detail & 0xFF
    if TRANSPOSED:
        line, place = offs_n, offs_m
        first = tl.maximum(line + lo, 0)
        last = tl.minimum(line + hi, last_m)
        empty = (line > last_n) | (last < first)
    else:
        line, place = offs_m, offs_n
        first = tl.maximum(line - hi, 0)
        last = tl.minimum(line - lo, last_n)
        empty = (line > last_m) | (last < first)
    first = tl.where(empty, NOWHERE, first)
    return (place - first).to(tl.uint32) <= tl.where(empty, 0, last - first).to(tl.uint32)


@triton.jit
def bits_keep(detail, MASKS, offs_m, offs_n, BM: tl.constexpr, WORDS: tl.constexpr):
    """The mask of a tile with stored bits; `detail` is its number."""
    word = tl.load(MASKS + detail.to(tl.int64) * (BM * WORDS) + (offs_m * WORDS + offs_n // 32))
    return ((word >> (offs_n % 32)) & 1) != 0


@triton.jit
def masked(
    x, other, e, masked_from, bits_from, detail, MASKS, offs_m, offs_n, BM: tl.constexpr, WORDS: tl.constexpr,
    MODE: tl.constexpr, HAS_BANDS: tl.constexpr, HAS_BITS: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """x where the mask of entry e keeps a pair, else `other`; offsets broadcast against each other ([BM, 1] and [1, BN], or
    transposed)."""
    if MODE == BAND:
        x = tl.where(band_keeps(detail, offs_m, offs_n, TRANSPOSED), x, other)
    elif MODE == BITS:
        x = tl.where(bits_keep(detail, MASKS, offs_m, offs_n, BM, WORDS), x, other)
    elif MODE == MIXED:
        if HAS_BANDS:
            if (e >= masked_from) & (e < bits_from):
                x = tl.where(band_keeps(detail, offs_m, offs_n, TRANSPOSED), x, other)
        if HAS_BITS:
            if e >= bits_from:
                x = tl.where(bits_keep(detail, MASKS, offs_m, offs_n, BM, WORDS), x, other)
    return x


@triton.jit
def included(
    x, other, EXCLUDED, row, token, length, EXCLUSIONS: tl.constexpr, TRANSPOSED: tl.constexpr
):  # fmt: skip
    """x but for the pairs that numbers of the tokens leave out: those with 0 <= number[row] - number[token] <= 1."""
    row = tl.minimum(tl.maximum(row, 0), length - 1)
    token = tl.minimum(tl.maximum(token, 0), length - 1)
    for line in tl.static_range(EXCLUSIONS):
        ours = tl.load(EXCLUDED + line * length + row)
        theirs = tl.load(EXCLUDED + line * length + token)
        if TRANSPOSED:
            distance = ours[None, :] - theirs[:, None]
        else:
            distance = ours[:, None] - theirs[None, :]
        x = tl.where((distance < 0) | (distance > 1), x, other)
    return x


@triton.jit
def mix(x):
    """The bijection of dropout.py on uint32."""
    x = x ^ (x >> 16)
    x = x * tl.full([], 0x7FEB352D, tl.uint32)
    x = x ^ (x >> 15)
    x = x * tl.full([], 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def dropout_rows(SEED, batch_head, i):
    """What the bits of query positions i begin with."""
    seed = tl.load(SEED).to(tl.uint32)
    head = mix(seed + tl.full([], 0x9E3779B9, tl.uint32) * (batch_head + 1).to(tl.uint32))
    return mix(head ^ (i.to(tl.uint32) * tl.full([], 0x85EBCA6B, tl.uint32)))


@triton.jit
def dropout_keeps(rows, j, threshold):
    """Whether weights survive; `rows` and j broadcast against each other."""
    bits = mix(rows ^ (j.to(tl.uint32) * tl.full([], 0xC2B2AE35, tl.uint32)))
    return (bits >> 8).to(tl.int32) >= threshold
