"""Triton kernels of compressed blocks: one forward, three backward. Triton is imported here: import this file lazily.

A block's first product is a sum over the places of its tokens, so its tokens are read where they lie. Every sum has one order.
Weights are read in their own dtype and take part in products in that of x; sums are in float32.

Legend: a line is a head of a sequence, c a block of it, s a stride of its tokens; l tokens a block (BLOCK), d from one to the
next (STRIDE), D the head width, E the width inside, BD and BE these as powers of two, BM blocks or strides at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import READ_AHEAD, interprets_bfloat16
from longspan_kernels.launch.launcher import SMALL, Launch, as_contiguous, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.launch.ops import output_like
from longspan_kernels.selected.triton.call_layout import by_rows, in_units
from longspan_kernels.selected.triton.common import elements, of_row, rows_at, store_rows

ROWS = 32  # BM
MOST_PARTS = 32  # programs that sum gradients of the second product
SPLIT_ROWS = 512  # blocks of a program that sums gradients of the first product, at least
MOST_SPLITS = 16  # of them
COLUMNS = 32  # of the first product's weights that a program finishes
FINISHED_ROWS = 16  # of the second product's
VARYING = ["x_b", "x_h", "x_t", "length", "heads", "blocks", "rows", "tiles", "each", "moved", "parts", "splits"]


@triton.jit
def entering(ENTER, place, D: tl.constexpr, BD: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BLOCK: tl.constexpr):
    """The weights [BE, BD] of a place; zeros past the last."""
    offs_e, offs_d = tl.arange(0, BE), tl.arange(0, BD)
    column = place * D + offs_d
    mask = (offs_e < E)[:, None] & ((offs_d < D) & (column < BLOCK * D))[None, :]
    return tl.load(ENTER + (offs_e * (BLOCK * D))[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def leaving(LEAVE, D: tl.constexpr, BD: tl.constexpr, E: tl.constexpr, BE: tl.constexpr):
    """The weights [BD, BE] of the second product."""
    offs_e, offs_d = tl.arange(0, BE), tl.arange(0, BD)
    return tl.load(
        LEAVE + (offs_d * E)[:, None] + offs_e[None, :], mask=(offs_d < D)[:, None] & (offs_e < E)[None, :], other=0.0
    )


@triton.jit
def below(x):
    """The share of a normal distribution below x."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=VARYING)
def compress_rows(
    X,
    PLACES,
    ENTER,
    ENTER_BIAS,
    LEAVE,
    LEAVE_BIAS,
    OUT,
    INSIDE,
    x_b: tl.int64,
    x_h: tl.int64,
    x_t: tl.int64,
    heads: tl.int32,
    blocks: tl.int32,
    tiles: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    BM: tl.constexpr,
):
    """OUT [lines, nc, D] and INSIDE [lines, nc, E], what comes out of the first product, of X [B, H, T, D]."""
    pid = tl.program_id(0)
    line = pid // tiles
    c = pid % tiles * BM + tl.arange(0, BM)
    there = c < blocks
    X += elements((line // heads).to(tl.int64) * x_b + (line % heads).to(tl.int64) * x_h, D)
    offs_e, offs_d = tl.arange(0, BE), tl.arange(0, BD)
    inside = tl.zeros([BM, BE], tl.float32)
    shift = tl.zeros([BE], tl.float32)  # what places add to the tokens comes to the same for every block
    total = tl.zeros([BM, BD], tl.float32)
    for place in tl.range(0, BLOCK):
        x = rows_at(X, (c * STRIDE + place).to(tl.int64) * x_t, there, D, BD)
        weight = entering(ENTER, place, D, BD, E, BE, BLOCK)
        added = tl.load(PLACES + place * D + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
        inside = tl.dot(x, tl.trans(weight.to(x.dtype)), inside, input_precision="ieee")
        shift += tl.sum(weight.to(tl.float32) * added[None, :], 1)
        total += x.to(tl.float32)
    inside += (shift + tl.load(ENTER_BIAS + offs_e, mask=offs_e < E, other=0.0).to(tl.float32))[None, :]
    kind = OUT.dtype.element_ty
    row = line.to(tl.int64) * blocks + c
    store_rows(INSIDE, row, there, inside, E, BE)
    inside = inside.to(kind).to(tl.float32)  # as the backward pass reads it
    hidden = (inside * below(inside)).to(kind)
    leave = leaving(LEAVE, D, BD, E, BE).to(kind)
    out = tl.dot(hidden, tl.trans(leave), total * (1.0 / BLOCK), input_precision="ieee")
    out += tl.load(LEAVE_BIAS + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)[None, :]
    store_rows(OUT, row, there, out, D, BD)


@triton.jit(do_not_specialize=VARYING)
def differentiate_inside(
    DOUT,
    INSIDE,
    LEAVE,
    DINSIDE,
    SUMS,
    rows: tl.int32,
    each: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
    BM: tl.constexpr,
):
    """DINSIDE [rows, E] of all lines; SUMS [parts, D * E + E + D], what `each` rows give the second product's weights and both
    biases, the first's first."""
    pid = tl.program_id(0)
    offs_e, offs_d = tl.arange(0, BE), tl.arange(0, BD)
    kind = DINSIDE.dtype.element_ty
    leave = leaving(LEAVE, D, BD, E, BE).to(kind)
    dleave = tl.zeros([BD, BE], tl.float32)
    denter_bias = tl.zeros([BE], tl.float32)
    dleave_bias = tl.zeros([BD], tl.float32)
    for start in tl.range(pid * each, tl.minimum(pid * each + each, rows), BM):
        row = start + tl.arange(0, BM)
        there = row < rows
        dout = rows_at(DOUT, of_row(row, D), there, D, BD)
        inside = rows_at(INSIDE, of_row(row, E), there, E, BE).to(tl.float32)
        share = below(inside)
        slope = share + inside * tl.exp(-0.5 * inside * inside) * 0.3989422804014327
        dinside = (tl.dot(dout, leave, input_precision="ieee") * slope).to(kind)
        store_rows(DINSIDE, row, there, dinside, E, BE)
        dleave = tl.dot(tl.trans(dout), (inside * share).to(kind), dleave, input_precision="ieee")
        denter_bias += tl.sum(dinside.to(tl.float32), 0)
        dleave_bias += tl.sum(dout.to(tl.float32), 0)
    SUMS += pid.to(tl.int64) * (D * E + E + D)
    inner = (offs_d < D)[:, None] & (offs_e < E)[None, :]
    tl.store(SUMS + (offs_d * E)[:, None] + offs_e[None, :], dleave, mask=inner)
    tl.store(SUMS + D * E + offs_e, denter_bias, mask=offs_e < E)
    tl.store(SUMS + D * E + E + offs_d, dleave_bias, mask=offs_d < D)


@triton.jit(do_not_specialize=VARYING)
def differentiate_places(
    X,
    DOUT,
    DINSIDE,
    ENTER,
    DX,
    PARTS,
    x_b: tl.int64,
    x_h: tl.int64,
    x_t: tl.int64,
    length: tl.int32,
    heads: tl.int32,
    blocks: tl.int32,
    rows: tl.int32,
    tiles: tl.int32,
    each: tl.int32,
    moved: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    BM: tl.constexpr,
):
    """DX [lines, T, D], by the first `moved` programs: one for BM tokens that lie as far behind the starts of strides.

    The others write PARTS [splits, E, l * D], what `each` rows give the first product's weights: one for a place and a split.
    """
    pid = tl.program_id(0)
    offs_e, offs_d = tl.arange(0, BE), tl.arange(0, BD)
    if pid < moved:
        behind = pid % STRIDE
        line = pid // STRIDE // tiles
        s = pid // STRIDE % tiles * BM + tl.arange(0, BM)
        token = s * STRIDE + behind
        dx = tl.zeros([BM, BD], tl.float32)
        for before in tl.range(0, (BLOCK + STRIDE - 1) // STRIDE):
            c = s - before
            there = (c >= 0) & (c < blocks) & (token - c * STRIDE < BLOCK)
            row = line.to(tl.int64) * blocks + c
            dinside = rows_at(DINSIDE, of_row(row, E), there, E, BE)
            weight = entering(ENTER, behind + before * STRIDE, D, BD, E, BE, BLOCK).to(dinside.dtype)
            dx = tl.dot(dinside, weight, dx, input_precision="ieee")
            dx += rows_at(DOUT, of_row(row, D), there, D, BD).to(tl.float32) * (1.0 / BLOCK)
        store_rows(DX, line.to(tl.int64) * length + token, token < length, dx, D, BD)
    else:
        place = (pid - moved) % BLOCK
        split = (pid - moved) // BLOCK
        denter = tl.zeros([BE, BD], tl.float32)
        for start in tl.range(split * each, tl.minimum(split * each + each, rows), BM):
            row = start + tl.arange(0, BM)
            there = row < rows
            line = row // blocks
            at = (line // heads).to(tl.int64) * x_b + (line % heads).to(tl.int64) * x_h
            x = rows_at(X, at + (row % blocks * STRIDE + place).to(tl.int64) * x_t, there, D, BD)
            dinside = rows_at(DINSIDE, of_row(row, E), there, E, BE)
            denter = tl.dot(tl.trans(dinside), x, denter, input_precision="ieee")
        at = PARTS + (split * E + offs_e).to(tl.int64)[:, None] * (BLOCK * D) + (place * D + offs_d)[None, :]
        tl.store(at, denter, mask=(offs_e < E)[:, None] & (offs_d < D)[None, :])


@triton.jit(do_not_specialize=VARYING)
def finish_weights(
    PLACES,
    ENTER,
    SUMS,
    PARTS,
    DPLACES,
    DENTER,
    DENTER_BIAS,
    DLEAVE,
    DLEAVE_BIAS,
    parts: tl.int32,
    splits: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
    BLOCK: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    """Gradients of all parameters from their sums, first part first: BC columns of the first product's weights and of places a
    program, then BR rows of the second's and its bias."""
    pid = tl.program_id(0)
    offs_e = tl.arange(0, BE)
    SIZE: tl.constexpr = D * E + E + D
    WIDE: tl.constexpr = BLOCK * D
    FIRST: tl.constexpr = (WIDE + BC - 1) // BC
    if pid < FIRST:
        column = pid * BC + tl.arange(0, BC)
        inner = (offs_e < E)[:, None] & (column < WIDE)[None, :]
        at = offs_e[:, None] * WIDE + column[None, :]
        total = tl.zeros([BE], tl.float32)
        for part in tl.range(0, parts, num_stages=READ_AHEAD):
            total += tl.load(SUMS + part * SIZE + D * E + offs_e, mask=offs_e < E, other=0.0)
        denter = tl.zeros([BE, BC], tl.float32)
        for split in tl.range(0, splits, num_stages=READ_AHEAD):
            denter += tl.load(PARTS + split * (E * WIDE) + at, mask=inner, other=0.0)
        places = tl.load(PLACES + column, mask=column < WIDE, other=0.0).to(tl.float32)
        weight = tl.load(ENTER + at, mask=inner, other=0.0).to(tl.float32)
        denter += total[:, None] * places[None, :]
        tl.store(DENTER + at, denter.to(DENTER.dtype.element_ty), mask=inner)
        dplaces = tl.sum(weight * total[:, None], 0)
        tl.store(DPLACES + column, dplaces.to(DPLACES.dtype.element_ty), mask=column < WIDE)
        if pid == 0:
            tl.store(DENTER_BIAS + offs_e, total.to(DENTER_BIAS.dtype.element_ty), mask=offs_e < E)
    else:
        row = (pid - FIRST) * BR + tl.arange(0, BR)
        of_rows = (row < D)[:, None] & (offs_e < E)[None, :]
        dleave = tl.zeros([BR, BE], tl.float32)
        dbias = tl.zeros([BR], tl.float32)
        for part in tl.range(0, parts, num_stages=READ_AHEAD):
            dleave += tl.load(SUMS + part * SIZE + (row * E)[:, None] + offs_e[None, :], mask=of_rows, other=0.0)
            dbias += tl.load(SUMS + part * SIZE + D * E + E + row, mask=row < D, other=0.0)
        tl.store(DLEAVE + (row * E)[:, None] + offs_e[None, :], dleave.to(DLEAVE.dtype.element_ty), mask=of_rows)
        tl.store(DLEAVE_BIAS + row, dbias.to(DLEAVE_BIAS.dtype.element_ty), mask=row < D)


def _launch(D: int, E: int, stages: int) -> Launch:
    return Launch(8 if width_of(D) * width_of(E) > 64 * 64 else 4, stages)


def _widths(D: int, E: int) -> dict:
    return {"D": D, "BD": width_of(D), "E": E, "BE": width_of(E)}


def _read(x: Tensor) -> dict:
    """What tells where the tokens of x lie."""
    x_b, x_h, x_t = in_units(x)
    return {"x_b": x_b, "x_h": x_h, "x_t": x_t, "heads": x.shape[1]}


@on_its_device
def triton_compress(
    x: Tensor, places: Tensor, enter: Tensor, enter_bias: Tensor, leave: Tensor, leave_bias: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """As `compress.compress_blocks`, and what comes out of the first product [B, H, nc, E]."""
    if interprets_bfloat16(x):
        out, inside = triton_compress(x.float(), places, enter, enter_bias, leave, leave_bias, stride)
        return out.to(x.dtype), inside.to(x.dtype)
    (B, H, T, D), E, l, x = x.shape, enter.shape[0], places.shape[0], by_rows(x)
    blocks = (T - l) // stride + 1
    out = torch.empty((B, H, blocks, D), dtype=x.dtype, device=x.device)
    inside = torch.empty((B, H, blocks, E), dtype=x.dtype, device=x.device)
    tiles = -(-blocks // ROWS)
    given = (x, *(as_contiguous(y) for y in (places, enter, enter_bias, leave, leave_bias)), out, inside)
    numbers = {"blocks": blocks, "tiles": tiles, "BLOCK": l, "STRIDE": stride, "BM": ROWS}
    run_kernel(compress_rows, B * H * tiles, _launch(D, E, 3), *given, **_read(x), **numbers, **_widths(D, E))
    return out, inside


@on_its_device
def triton_compress_backward(
    dout: Tensor, x: Tensor, places: Tensor, enter: Tensor, leave: Tensor, inside: Tensor, stride: int
) -> tuple[Tensor, ...]:
    """Gradients of x, places, and weight and bias of both products."""
    if interprets_bfloat16(x):
        dx, *rest = triton_compress_backward(dout.float(), x.float(), places, enter, leave, inside.float(), stride)
        return (dx.to(x.dtype), *rest)
    (B, H, T, D), E, l, x = x.shape, enter.shape[0], places.shape[0], by_rows(x)
    places, enter, leave = (from_16_bytes(y.contiguous()) for y in (places, enter, leave))
    dout, inside = (from_16_bytes(y.contiguous()) for y in (dout, inside))
    blocks, widths = inside.shape[2], _widths(D, E)
    rows = B * H * blocks
    of_part = -(-rows // (MOST_PARTS * ROWS)) * ROWS
    of_split = max(SPLIT_ROWS, -(-rows // (MOST_SPLITS * ROWS)) * ROWS)
    parts, splits = -(-rows // of_part), -(-rows // of_split)
    summed = -(-parts * (D * E + E + D) // 4) * 4  # what follows starts at a multiple of 16 bytes
    dinside = torch.empty(inside.shape, dtype=x.dtype, device=x.device)
    sums = torch.empty(summed + splits * E * l * D, dtype=torch.float32, device=x.device)
    split_sums = sums[summed:]
    given = (dout, inside, leave, dinside, sums)
    run_kernel(differentiate_inside, parts, _launch(D, E, 2), *given, rows=rows, each=of_part, **widths, BM=ROWS)

    dx = output_like(x)
    tiles = -(-T // (stride * ROWS))
    moved = B * H * stride * tiles
    cut = {"blocks": blocks, "rows": rows, "tiles": tiles, "each": of_split, "moved": moved}
    numbers = {**_read(x), "length": T, **cut, **widths, "BLOCK": l, "STRIDE": stride, "BM": ROWS}
    run_kernel(differentiate_places, moved + l * splits, _launch(D, E, 3), x, dout, dinside, enter, dx, split_sums, **numbers)

    found = [torch.empty(y.shape, dtype=y.dtype, device=x.device) for y in (places, enter, enter[:, 0], leave, leave[:, 0])]
    programs = -(-l * D // COLUMNS) + -(-D // FINISHED_ROWS)
    numbers = {"parts": parts, "splits": splits, **widths, "BLOCK": l, "BC": COLUMNS, "BR": FINISHED_ROWS}
    run_kernel(finish_weights, programs, SMALL, places, enter, sums, split_sums, *found, **numbers)
    return dx, *found
