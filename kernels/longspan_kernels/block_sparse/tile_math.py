"""Device functions that the forward and the backward share: work items, tokens of a tile, masks, dropout bits.

Legend: BM x BN a tile of queries x keys, m and n places in it. Triton is imported here: import this file lazily.
"""

# ruff: noqa: SIM108 (branches on compile-time constants stay statements)
from __future__ import annotations

import triton
import triton.language as tl

FULL = tl.constexpr(0)  # every pair of the tile is live
BAND = tl.constexpr(1)  # live where lo <= m - n <= hi
BITS = tl.constexpr(2)  # live where a stored bit is set
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
EVERY_ENTRY = tl.constexpr(1 << 30)
# Arguments that follow the lengths: a kernel compiled for one value serves all.
VARYING = [
    "q_len", "k_len", "q_start", "k_start", "lines", "batch", "owners", "batch_groups", "threshold", "bias_first",
    "bias_h", "bias_row", "q_index_stride", "k_index_stride", "step", "q_per", "k_per", "sums_h", "sums_row",
    "sums_first", "q_b", "q_h", "k_b", "k_h", "v_b", "v_h", "o_b", "o_h", "do_b", "do_h", "dq_b", "dq_h", "dk_b",
    "dk_h", "dv_b", "dv_h", "x_b", "x_h", "x_len", "x_start", "index_stride",
]  # fmt: skip


@triton.jit
def work_item(ITEMS, owners, lines, batch):
    """What this program does: (batch, owner, line, first entry, end entry, slot of its partial result or -1).

    An owner is a head (rows) or a key head (columns). Without a list of items, one program serves each line.
    """
    pid = tl.program_id(0)
    if ITEMS is None:
        line = pid % lines
        rest = pid // lines
        owner = rest % owners
        b = rest // owners
        first = 0
        stop = EVERY_ENTRY
        slot = -1
    else:
        at = ITEMS + (pid // batch).to(tl.int64) * 5
        b = pid % batch
        owner = tl.load(at)
        line = tl.load(at + 1)
        first = tl.load(at + 2)
        stop = tl.load(at + 3)
        slot = tl.load(at + 4)
        slot = tl.where(slot < 0, -1, slot * batch + b)
    return b, owner, line, first, stop, slot


@triton.jit
def line_bounds(LINES, u, lines, line):
    """(start, full, band, count) of a line: where its entries begin and how many there are, cumulative by kind."""
    at = LINES + (u.to(tl.int64) * lines + line) * 4
    start = tl.load(at)
    full = tl.load(at + 1)
    band = full + tl.load(at + 2)
    count = tl.load(at + 3)
    return start, full, band, count


@triton.jit
def tokens_of(INDEX, u, index_stride, tile, origin, step, per, B: tl.constexpr, STEPPED: tl.constexpr):
    """(first token row, all token rows) of a tile; a row below 0 or past the end is no token.

    Natural order: consecutive. STEPPED: `per` tiles a residue class of `step`. Else as the index says (no first row then).
    """
    offs = tl.arange(0, B)
    if STEPPED:
        base = origin + tile // per + (tile % per) * (B * step)
        token = base + offs * step
    elif INDEX is None:
        base = tile * B + origin
        token = base + offs
    else:
        base = 0
        token = tl.load(INDEX + u.to(tl.int64) * index_stride + tile * B + offs)
    return base, token


@triton.jit
def load_tile(
    X, token, base, ok, stride, step, offs_d, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr, CHECK: tl.constexpr,
    INDEXED: tl.constexpr, STEPPED: tl.constexpr,
):  # fmt: skip
    """Rows `token` of X [T, D] as [B, BD]; 0 where not ok (only looked at under CHECK) and past D."""
    offs = tl.arange(0, B)
    if STEPPED:
        at = X + base.to(tl.int64) * stride + (offs.to(tl.int64)[:, None] * (stride * step) + offs_d[None, :])
    elif INDEXED:
        at = X + token.to(tl.int64)[:, None] * stride + offs_d[None, :]
    else:
        # One 64-bit product a tile; what remains inside it fits 32 bits.
        at = X + base.to(tl.int64) * stride + (offs[:, None] * stride.to(tl.int32) + offs_d[None, :])
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
def pattern_keeps(detail, MASKS, offs_m, offs_n, BM: tl.constexpr, WORDS: tl.constexpr, MODE: tl.constexpr):
    """The mask of an entry over offsets that broadcast against each other ([BM, 1] and [1, BN], or transposed).

    `detail` holds the two bounds of a band in its halves, or the number of a stored mask.
    """
    if MODE == BAND:
        distance = offs_m - offs_n
        keeps = (distance >= (detail >> 16)) & (distance <= ((detail << 16) >> 16))
    else:
        word = tl.load(MASKS + detail.to(tl.int64) * (BM * WORDS) + (offs_m * WORDS + offs_n // 32))
        keeps = ((word >> (offs_n % 32)) & 1) != 0
    return keeps


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
