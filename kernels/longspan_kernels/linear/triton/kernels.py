"""Triton kernels of causal linear attention. Triton is imported here: import this file lazily.

A sequence is cut into segments of whole chunks. `segment_states` sums each segment's own state, `carry_states` turns the sums
into the states before the segments, and `attend_segments` goes through each segment's chunks with the state in registers. All
three run forwards and backwards in time, and each gradient is the output of other operands (see `chunked.py`): x, y, z in the
place of q, k, v.

Legend: BM tokens a chunk, DX and DZ the widths of x, y and of z, BX the first rounded up, BZ columns of z a program.
"""

# ruff: noqa: SIM108 (compile-time branches stay statements)
from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

FAINTEST = tl.constexpr(-100.0)  # exp(-100) is 0 in float32, and differences of -inf are NaN
VARYING = ("length", "segments", "chunks", "batch_heads")


class Constants(NamedTuple):
    """What `attend_segments` is compiled for.

    H heads; query heads a head of x, y, z and of the other operand; widths and tiles as in the legend. EXACT: products of
    float32, not rounded to tf32. HALF: states may exceed the dtype.
    """

    H: int
    X_REPEAT: int
    Y_REPEAT: int
    Z_REPEAT: int
    OTHER_REPEAT: int
    DX: int
    DZ: int
    BX: int
    BZ: int
    BM: int
    REVERSE: bool
    EXACT: bool
    HALF: bool


@triton.jit
def load_rows(X, base, stride, rows, columns, ok, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """[BM, B*] rows from `base` on, zeros outside."""
    at = X + base * stride + rows[:, None] * stride + columns[None, :]
    if PADDED:
        return tl.load(at, mask=ok[:, None] & (columns < WIDTH)[None, :], other=0.0)
    return tl.load(at, mask=ok[:, None], other=0.0)


@triton.jit
def decays_of(G, base, g_t, rows, ok):
    """Sums of log decays [BM] from the chunk's first token to each, and that of the chunk."""
    g = tl.load(G + (base + rows) * g_t, mask=ok, other=0.0).to(tl.float32)
    g = tl.maximum(g, FAINTEST)
    return tl.cumsum(g, 0), tl.sum(g, 0)


@triton.jit
def runs_of(RUNS, first, rows, length, BM: tl.constexpr, REVERSE: tl.constexpr):
    """The runs of a chunk's tokens [BM], of the state that comes in and of the state that goes out."""
    own = tl.load(RUNS + tl.minimum(first + rows, length - 1))
    if REVERSE:
        into = tl.load(RUNS + tl.minimum(first + BM, length - 1))
        onto = tl.load(RUNS + first)
    else:
        into = tl.load(RUNS + tl.maximum(first - 1, 0))
        onto = tl.load(RUNS + tl.minimum(first + BM - 1, length - 1))
    return own, into, onto


@triton.jit(do_not_specialize=VARYING)
def segment_states(
    Y, Z, STATES, KEPT, G, RUNS, LENGTHS,
    y_b: tl.int64, y_h: tl.int64, y_t: tl.int64, z_b: tl.int64, z_h: tl.int64, z_t: tl.int64,
    g_b: tl.int64, g_h: tl.int64, g_t: tl.int64,
    length: tl.int32, segments: tl.int32, chunks: tl.int32, H: tl.constexpr, Y_REPEAT: tl.constexpr, Z_REPEAT: tl.constexpr,
    DX: tl.constexpr, DZ: tl.constexpr, BX: tl.constexpr, BZ: tl.constexpr, BM: tl.constexpr, REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """STATES[bh, segment] = sum of onto_j y_j z_j^T over the segment; KEPT[bh, segment], what remains of the state before."""
    Z_TILES: tl.constexpr = (DZ + BZ - 1) // BZ
    X_TILES: tl.constexpr = (DX + BX - 1) // BX
    program = tl.program_id(0)
    z_tile = program % Z_TILES
    x_tile = (program // Z_TILES) % X_TILES
    segment = (program // (Z_TILES * X_TILES)) % segments
    bh = program // (Z_TILES * X_TILES) // segments
    b, h = bh // H, bh % H
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    Y += b64 * y_b + (h64 // Y_REPEAT) * y_h
    Z += b64 * z_b + (h64 // Z_REPEAT) * z_h
    if G is not None:
        G += b64 * g_b + h64 * g_h
    if RUNS is not None:
        RUNS += b64 * length
    stop = length
    if LENGTHS is not None:
        stop = tl.minimum(stop, tl.load(LENGTHS + b)).to(tl.int32)
    rows = tl.arange(0, BM)
    x_columns = x_tile * BX + tl.arange(0, BX)
    z_columns = z_tile * BZ + tl.arange(0, BZ)
    count = tl.minimum(chunks, tl.cdiv(length, BM) - segment * chunks)
    state = tl.zeros((BX, BZ), tl.float32)
    kept = 1.0
    for c in tl.range(0, count):
        if REVERSE:
            chunk = segment * chunks + count - 1 - c
        else:
            chunk = segment * chunks + c
        first = chunk * BM
        base = first.to(tl.int64)
        ok = first + rows < stop
        y = load_rows(Y, base, y_t, rows, x_columns, ok, DX, DX % BX != 0)
        z = load_rows(Z, base, z_t, rows, z_columns, ok, DZ, DZ % BZ != 0)
        if G is not None:
            summed, total = decays_of(G, base, g_t, rows, ok)
            if REVERSE:
                onto = tl.exp(summed)
            else:
                onto = tl.exp(tl.minimum(total - summed, 0.0))
            passed = tl.exp(total)
        else:
            onto = tl.full((BM,), 1.0, tl.float32)
            passed = 1.0
        if RUNS is not None:
            own, came, leaves = runs_of(RUNS, first, rows, length, BM, REVERSE)
            onto = tl.where(own == leaves, onto, 0.0)
            passed = tl.where(came == leaves, passed, 0.0)
        if G is not None or RUNS is not None:
            y = (y * onto[:, None]).to(z.dtype)
            state = state * passed
            kept = kept * passed
        state = tl.dot(tl.trans(y), z, state, input_precision=PRECISION)
    at = STATES + (bh.to(tl.int64) * (segments + 1) + segment) * DX * DZ
    inside = (x_columns < DX)[:, None] & (z_columns < DZ)[None, :]
    tl.store(at + x_columns[:, None] * DZ + z_columns[None, :], state, mask=inside)
    if z_tile + x_tile == 0:
        tl.store(KEPT + bh.to(tl.int64) * segments + segment, kept)


@triton.jit(do_not_specialize=VARYING)
def carry_states(STATES, KEPT, START, segments: tl.int32, SIZE: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr):
    """In place: STATES[bh, s], the sum of segment s, becomes the state that segment s gets; the last one stands at the end."""
    TILES: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    bh = (program // TILES).to(tl.int64)
    at = (program % TILES) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    STATES += bh * (segments + 1) * SIZE
    KEPT += bh * segments
    if START is not None:
        state = tl.load(START + bh * SIZE + at, mask=inside, other=0.0)
    else:
        state = tl.zeros((BLOCK,), tl.float32)
    for s in tl.range(0, segments):
        if REVERSE:
            place = segments - 1 - s
        else:
            place = s
        place64 = place.to(tl.int64)
        own = tl.load(STATES + place64 * SIZE + at, mask=inside, other=0.0)
        tl.store(STATES + place64 * SIZE + at, state, mask=inside)
        state = state * tl.load(KEPT + place64) + own
    tl.store(STATES + segments.to(tl.int64) * SIZE + at, state, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def attend_segments(
    X, Y, Z, OUT, CARRIED, OTHER, DOTS, G, RUNS, LENGTHS,
    x_b: tl.int64, x_h: tl.int64, x_t: tl.int64, y_b: tl.int64, y_h: tl.int64, y_t: tl.int64,
    z_b: tl.int64, z_h: tl.int64, z_t: tl.int64, g_b: tl.int64, g_h: tl.int64, g_t: tl.int64,
    other_b: tl.int64, other_h: tl.int64, other_t: tl.int64, out_b: tl.int64, out_h: tl.int64, out_t: tl.int64,
    carried_bh: tl.int64, carried_s: tl.int64, carried_x: tl.int64, carried_z: tl.int64, scale,
    length: tl.int32, segments: tl.int32, chunks: tl.int32, batch_heads: tl.int32, C: tl.constexpr,
):  # fmt: skip
    """OUT = scale * x_i (sum_j within_ij y_j z_j^T + into_i CARRIED); DOTS[z tile, bh, i] = OUT_i . OTHER_i before rounding."""
    DX: tl.constexpr = C.DX
    DZ: tl.constexpr = C.DZ
    BX: tl.constexpr = C.BX
    BZ: tl.constexpr = C.BZ
    BM: tl.constexpr = C.BM
    PRECISION: tl.constexpr = "ieee" if C.EXACT else "tf32"
    Z_TILES: tl.constexpr = (DZ + BZ - 1) // BZ
    program = tl.program_id(0)
    z_tile = program % Z_TILES
    segment = (program // Z_TILES) % segments
    bh = program // Z_TILES // segments
    b, h = bh // C.H, bh % C.H
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    X += b64 * x_b + (h64 // C.X_REPEAT) * x_h
    Y += b64 * y_b + (h64 // C.Y_REPEAT) * y_h
    Z += b64 * z_b + (h64 // C.Z_REPEAT) * z_h
    OUT += b64 * out_b + h64 * out_h
    if G is not None:
        G += b64 * g_b + h64 * g_h
    if RUNS is not None:
        RUNS += b64 * length
    if OTHER is not None:
        OTHER += b64 * other_b + (h64 // C.OTHER_REPEAT) * other_h
        DOTS += (z_tile.to(tl.int64) * batch_heads + bh) * length
    stop = length
    if LENGTHS is not None:
        stop = tl.minimum(stop, tl.load(LENGTHS + b)).to(tl.int32)
    rows = tl.arange(0, BM)
    x_columns = tl.arange(0, BX)
    z_columns = z_tile * BZ + tl.arange(0, BZ)
    if C.REVERSE:
        seen = rows[:, None] <= rows[None, :]
    else:
        seen = rows[:, None] >= rows[None, :]
    inside = (x_columns < DX)[:, None] & (z_columns < DZ)[None, :]
    if CARRIED is not None:
        CARRIED += bh.to(tl.int64) * carried_bh + segment.to(tl.int64) * carried_s
        state = tl.load(CARRIED + x_columns[:, None] * carried_x + z_columns[None, :] * carried_z, mask=inside, other=0.0)
    else:
        state = tl.zeros((BX, BZ), tl.float32)
    count = tl.minimum(chunks, tl.cdiv(length, BM) - segment * chunks)
    for c in tl.range(0, count):
        if C.REVERSE:
            chunk = segment * chunks + count - 1 - c
        else:
            chunk = segment * chunks + c
        first = chunk * BM
        base = first.to(tl.int64)
        ok = first + rows < stop
        x = load_rows(X, base, x_t, rows, x_columns, ok, DX, DX % BX != 0)
        y = load_rows(Y, base, y_t, rows, x_columns, ok, DX, DX % BX != 0)
        z = load_rows(Z, base, z_t, rows, z_columns, ok, DZ, DZ % BZ != 0)
        scores = tl.dot(x, tl.trans(y), input_precision=PRECISION)  # (BM, BM)
        if C.HALF:  # a state can exceed float16
            size = tl.maximum(tl.max(tl.max(tl.abs(state), 1), 0), 1.0)
            acc = tl.dot(x, (state / size).to(x.dtype), input_precision=PRECISION) * size
        else:
            acc = tl.dot(x, state.to(x.dtype), input_precision=PRECISION)  # (BM, BZ)
        live = seen
        if G is not None:
            summed, total = decays_of(G, base, g_t, rows, ok)
            if C.REVERSE:
                between = summed[None, :] - summed[:, None]
                into = tl.exp(tl.minimum(total - summed, 0.0))
                onto = tl.exp(summed)
            else:
                between = summed[:, None] - summed[None, :]
                into = tl.exp(summed)
                onto = tl.exp(tl.minimum(total - summed, 0.0))
            passed = tl.exp(total)
            scores = scores * tl.exp(tl.minimum(between, 0.0))
        else:
            into = tl.full((BM,), 1.0, tl.float32)
            onto = tl.full((BM,), 1.0, tl.float32)
            passed = 1.0
        if RUNS is not None:
            own, came, leaves = runs_of(RUNS, first, rows, length, BM, C.REVERSE)
            live = live & (own[:, None] == own[None, :])
            into = tl.where(own == came, into, 0.0)
            onto = tl.where(own == leaves, onto, 0.0)
            passed = tl.where(came == leaves, passed, 0.0)
        if G is not None or RUNS is not None:
            acc = acc * into[:, None]
            y = (y * onto[:, None]).to(z.dtype)
            state = state * passed
        scores = tl.where(live, scores, 0.0)
        acc = tl.dot(scores.to(z.dtype), z, acc, input_precision=PRECISION)
        state = tl.dot(tl.trans(y), z, state, input_precision=PRECISION)
        acc = acc * scale
        exists = first + rows < length
        if OTHER is not None:
            other = load_rows(OTHER, base, other_t, rows, z_columns, ok, DZ, DZ % BZ != 0)
            tl.store(DOTS + first + rows, tl.sum(acc * other.to(tl.float32), 1), mask=exists)
        at = OUT + base * out_t + rows[:, None] * out_t + z_columns[None, :]
        if DZ % BZ != 0:
            tl.store(at, acc.to(OUT.dtype.element_ty), mask=exists[:, None] & (z_columns < DZ)[None, :])
        else:
            tl.store(at, acc.to(OUT.dtype.element_ty), mask=exists[:, None])
