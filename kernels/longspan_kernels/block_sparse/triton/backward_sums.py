"""Triton kernels of the backward pass: what comes before and after the tiles. Triton is imported here: import this file lazily.

delta of each row; sums of pieces and components.

Legend: BM x BN the tile of queries x keys, BD the head width D rounded up to a power of two, SHARE query heads a key head.
"""

# ruff: noqa: SIM102 (compile-time branches stay statements)
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.common import (
    LOG2E,
    READ_AHEAD,
    VARYING,
    addresses,
    allowing_for_rounding,
    load_tile,
    tokens_of,
    within,
)


@triton.jit(do_not_specialize=VARYING)
def prepare_rows(
    OUT, DOUT, LSE, DLSE, MINUS_DELTA, PAIRS, o_b: tl.int64, o_h: tl.int64, o_t: tl.int64, do_b: tl.int64, do_h: tl.int64,
    do_t: tl.int64, q_len: tl.int32, owners: tl.int32, lines: tl.int32, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """-delta of each row, 0 for one without keys; and where PAIRS is, there too, beside lse in base 2 or +inf."""
    pid = tl.program_id(0)
    line = pid % lines
    batch_head = (pid // lines).to(tl.int64)
    b, h = batch_head // owners, batch_head % owners
    base = line * BM
    row = base + tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    ok = row < q_len
    # Without its alignment a head would be read number by number.
    OUT += tl.multiple_of(b * o_b + h * o_h, ALIGN)
    DOUT += tl.multiple_of(b * do_b + h * do_h, ALIGN)
    out = load_tile(OUT, row, base, ok, o_t, 1, offs_d, D, BD, BM, True, False, False).to(tl.float32)
    dout = load_tile(DOUT, row, base, ok, do_t, 1, offs_d, D, BD, BM, True, False, False).to(tl.float32)
    delta = tl.sum(out * dout, 1)
    at = batch_head * q_len + row
    if DLSE is not None:
        delta -= tl.load(DLSE + at, mask=ok, other=0.0)
    lse = tl.load(LSE + at, mask=ok, other=float("-inf"))
    empty = lse == float("-inf")
    minus_delta = tl.where(empty, 0.0, -delta)
    tl.store(MINUS_DELTA + at, minus_delta, mask=ok)
    if PAIRS is not None:
        both = tl.join(tl.where(empty, float("inf"), allowing_for_rounding(lse) * LOG2E), minus_delta)
        tl.store(PAIRS + 2 * at[:, None] + tl.arange(0, 2)[None, :], both, mask=ok[:, None])


@triton.jit
def is_second(FLAGS, slot, flags):
    """Whether this program has the second half of a line, see `Work.in_two`; then it waits until the first is written.

    The first comes earlier among the programs, so it runs or has run. The flag is taken down again, for the next launch.
    """
    second = slot >= flags
    if second:
        while tl.atomic_cas(FLAGS + (slot - flags), 1, 0) != 1:
            pass
    return second


@triton.jit
def tell_second(FLAGS, slot, flags):
    """Says that the first half of a line is written."""
    if slot >= 0:
        if slot < flags:
            tl.debug_barrier()
            tl.atomic_xchg(FLAGS + slot, 1)


@triton.jit
def add_rows(
    X, value, token, base, ok, stride, step, merge, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr, MERGE: tl.constexpr,
    INDEXED: tl.constexpr, STEPPED: tl.constexpr,
):  # fmt: skip
    """Writes rows of a gradient, or adds them to what earlier components wrote."""
    offs_d = tl.arange(0, BD)
    at = addresses(X, token, base, stride, step, offs_d, B, INDEXED, STEPPED)
    keep = ok[:, None] & (offs_d < D)[None, :]
    if MERGE:
        if merge != 0:
            # Past the cache of this processor: another may have written it a moment ago.
            value += tl.load(at, mask=keep, other=0.0, cache_modifier=".cg").to(tl.float32)
    tl.store(at, value.to(X.dtype.element_ty), mask=keep)


@triton.jit
def add_rows_or_keep(
    X, PART, value, slot, token, base, ok, stride, step, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr,
    MERGE: tl.constexpr, INDEXED: tl.constexpr, STEPPED: tl.constexpr,
):  # fmt: skip
    """As `add_rows`; or keeps the rows of a piece, those with slot >= 0, in PART [slots, 2, B, BD].

    As two numbers of the gradient's own dtype, whose sum is as good as a float32 here: one store serves rows and pieces, which
    leaves registers to the loop before it (see PAIRED_WIDTH in backward_order.py).
    """
    offs_d = tl.arange(0, BD)
    at = addresses(X, token, base, stride, step, offs_d, B, INDEXED, STEPPED)
    keep = ok[:, None] & (offs_d < D)[None, :]
    cut = (slot + tl.zeros([B, 1], tl.int32)) >= 0
    piece = PART + (slot.to(tl.int64) * (2 * B) + tl.arange(0, B))[:, None] * BD + offs_d[None, :]
    if MERGE:
        value += tl.load(at, mask=keep & ~cut, other=0.0).to(tl.float32)
    high = value.to(X.dtype.element_ty)
    tl.store(tl.where(cut, piece, at), high, mask=keep | cut)
    if slot >= 0:
        tl.store(piece + B * BD, (value - high.to(tl.float32)).to(X.dtype.element_ty))


@triton.jit(do_not_specialize=VARYING)
def add_pieces(
    X, PART, SPLITS, GROUP, MERGES, X_INDEX, x_b: tl.int64, x_h: tl.int64, x_t: tl.int64, index_stride: tl.int64,
    x_len: tl.int32, x_start: tl.int32, batch: tl.int32, batch_groups: tl.int32, D: tl.constexpr, BD: tl.constexpr,
    B: tl.constexpr, BX: tl.constexpr, SHARE: tl.constexpr, MERGE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Adds up the pieces of one cut line, in their order: BX of its B tokens a program."""
    PARTS: tl.constexpr = B // BX
    pid = tl.program_id(0)
    part = pid % PARTS
    pid = pid // PARTS
    b = pid % batch
    at = SPLITS + (pid // batch).to(tl.int64) * 4
    owner = tl.load(at)
    line = tl.load(at + 1)
    slot = tl.load(at + 2)
    pieces = tl.load(at + 3)
    offs_x = part * BX + tl.arange(0, BX)
    offs_d = tl.arange(0, BD)
    HALVES: tl.constexpr = 1 if PART.dtype.element_ty == tl.float32 else 2
    acc = tl.zeros([BX, BD], tl.float32)
    for piece in tl.range(0, pieces, num_stages=READ_AHEAD):
        place = ((slot + piece) * batch + b).to(tl.int64) * (HALVES * B) + offs_x
        found = tl.load(PART + place[:, None] * BD + offs_d[None, :]).to(tl.float32)
        if HALVES == 2:
            found += tl.load(PART + B * BD + place[:, None] * BD + offs_d[None, :]).to(tl.float32)
        acc += found
    u = (tl.maximum(tl.load(GROUP + owner * SHARE), 0) + b * batch_groups).to(tl.int64)
    base, token = tokens_of(X_INDEX, u, index_stride, line * PARTS + part, x_start, 1, 1, BX, False)
    merge = 1
    if MERGES is not None:
        merge = tl.load(MERGES + owner)
    x = X + tl.multiple_of(b.to(tl.int64) * x_b + owner.to(tl.int64) * x_h, ALIGN)
    ok = within(token, x_len)
    add_rows(x, acc, token, base, ok, x_t, 1, merge, D, BD, BX, MERGE, X_INDEX is not None, False)
