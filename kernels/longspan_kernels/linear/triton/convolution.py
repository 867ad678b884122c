"""Triton kernels of the short convolution. Triton is imported here: import this file lazily.

Legend: BT tokens of one head at a time, BD the head width D as a power of two, K tokens of the kernel.
"""

# Triton adds tuples, but does not unpack into them; their types are its own.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import Launch, as_contiguous, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton.call_layout import by_rows, in_units
from longspan_kernels.selected.triton.common import elements, of_row, rows_at, store_rows

TILE = 2048  # numbers at a time: K such tiles are held in registers
SUMMED = 1024  # tokens whose gradients of weights a program adds up, whole tiles of them
VARYING = ["x_b", "x_h", "length", "heads", "parts"]


@triton.jit
def from_earlier(SEGMENTS, b, token, i: tl.constexpr, length):
    """Whether the token i places before exists and is of the same segment."""
    there = (token >= i) & (token < length)
    if SEGMENTS is not None:
        own = tl.load(SEGMENTS + b * length + token, mask=there, other=0)
        there = there & (own == tl.load(SEGMENTS + b * length + token - i, mask=there, other=0))
    return there


@triton.jit
def convolved(
    X, WEIGHT, SEGMENTS, b, h, token, x_t, length, heads, D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, K: tl.constexpr
):
    """The sum of the weighted tokens [BT, BD] float32, and the tokens that it is of, K times [BT, BD]."""
    offs_d = tl.arange(0, BD)
    total = tl.zeros([BT, BD], tl.float32)
    tokens = ()
    for i in tl.static_range(K):
        earlier = from_earlier(SEGMENTS, b, token, i, length)
        x = rows_at(X, (token - i).to(tl.int64) * x_t, earlier, D, BD).to(tl.float32)
        weight = tl.load(WEIGHT + (i * heads + h) * D + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
        total += x * weight[None, :]
        tokens = tokens + (x,)
    return total, tokens


@triton.jit(do_not_specialize=VARYING)
def convolve(
    X,
    WEIGHT,
    SEGMENTS,
    OUT,
    x_b: tl.int64,
    x_h: tl.int64,
    x_t: tl.int64,
    length: tl.int32,
    heads: tl.int32,
    parts: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BT: tl.constexpr,
    K: tl.constexpr,
):
    """OUT [B, H, T, D] of X [B, H, T, D] and WEIGHT [K, H, D]."""
    pid = tl.program_id(0)
    line = pid // parts
    b, h = (line // heads).to(tl.int64), line % heads
    token = pid % parts * BT + tl.arange(0, BT)
    X += elements(b * x_b + h.to(tl.int64) * x_h, D)
    total, _ = convolved(X, WEIGHT, SEGMENTS, b, h, token, x_t, length, heads, D, BD, BT, K)
    out = total / (1.0 + tl.exp(-total))
    store_rows(OUT, line.to(tl.int64) * length + token, token < length, out, D, BD)


@triton.jit(do_not_specialize=VARYING)
def differentiate_convolution(
    X,
    WEIGHT,
    SEGMENTS,
    DOUT,
    DSUM,
    SUMS,
    x_b: tl.int64,
    x_h: tl.int64,
    x_t: tl.int64,
    length: tl.int32,
    heads: tl.int32,
    parts: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BT: tl.constexpr,
    K: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """DSUM [B, H, T, D], the gradient of what the silu takes, and SUMS [B * H * parts, K, D], what SUMMED tokens give the
    weights."""
    pid = tl.program_id(0)
    line = pid // parts
    b, h = (line // heads).to(tl.int64), line % heads
    offs_d = tl.arange(0, BD)
    X += elements(b * x_b + h.to(tl.int64) * x_h, D)
    sums = ()
    for _ in tl.static_range(K):
        sums = sums + (tl.zeros([BD], tl.float32),)
    begin = pid % parts * SUMMED
    for start in tl.range(begin, tl.minimum(begin + SUMMED, length), BT):
        token = start + tl.arange(0, BT)
        row = line.to(tl.int64) * length + token
        total, tokens = convolved(X, WEIGHT, SEGMENTS, b, h, token, x_t, length, heads, D, BD, BT, K)
        dout = rows_at(DOUT, of_row(row, D), token < length, D, BD).to(tl.float32)
        gate = 1.0 / (1.0 + tl.exp(-total))
        dsum = dout * gate * (1.0 + total * (1.0 - gate))
        store_rows(DSUM, row, token < length, dsum, D, BD)
        more = ()
        for i in tl.static_range(K):
            more = more + (sums[i] + tl.sum(dsum * tokens[i], 0),)
        sums = more
    for i in tl.static_range(K):
        tl.store(SUMS + (pid.to(tl.int64) * K + i) * D + offs_d, sums[i], mask=offs_d < D)


@triton.jit(do_not_specialize=VARYING)
def convolve_back(
    DSUM,
    WEIGHT,
    SEGMENTS,
    DX,
    length: tl.int32,
    heads: tl.int32,
    parts: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BT: tl.constexpr,
    K: tl.constexpr,
):
    """DX [B, H, T, D]: what the tokens that a token goes into send back."""
    pid = tl.program_id(0)
    line = pid // parts
    b, h = (line // heads).to(tl.int64), line % heads
    token = pid % parts * BT + tl.arange(0, BT)
    offs_d = tl.arange(0, BD)
    DSUM += line.to(tl.int64) * length * D
    total = tl.zeros([BT, BD], tl.float32)
    for i in tl.static_range(K):
        later = from_earlier(SEGMENTS, b, token + i, i, length)
        dsum = rows_at(DSUM, of_row(token + i, D), later, D, BD).to(tl.float32)
        weight = tl.load(WEIGHT + (i * heads + h) * D + offs_d, mask=offs_d < D, other=0.0).to(tl.float32)
        total += dsum * weight[None, :]
    store_rows(DX, line.to(tl.int64) * length + token, token < length, total, D, BD)


def _numbers(x: Tensor, weight: Tensor, tokens: int | None = None) -> dict:
    """The numbers of a launch whose programs work on that many tokens, a tile of them unless given."""
    T, D = x.shape[2:]
    wide = width_of(D)
    tile = {"D": D, "BD": wide, "BT": TILE // wide, "K": weight.shape[0]}
    return {"length": T, "heads": x.shape[1], "parts": -(-T // (tokens or tile["BT"])), **tile}


def _strides(x: Tensor) -> dict:
    return dict(zip(("x_b", "x_h", "x_t"), in_units(x), strict=True))


@on_its_device
def triton_convolution(x: Tensor, weight: Tensor, segments: Tensor | None) -> Tensor:
    """As `convolution.short_convolution`."""
    if interprets_bfloat16(x):
        return triton_convolution(x.float(), weight, segments).to(x.dtype)
    x, weight, segments = by_rows(x), as_contiguous(weight), as_contiguous(segments)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    numbers = _numbers(x, weight)
    programs = numbers["parts"] * x.shape[0] * x.shape[1]
    run_kernel(convolve, programs, Launch(4, 1), x, weight, segments, out, **_strides(x), **numbers)
    return out


@on_its_device
def triton_convolution_backward(dout: Tensor, x: Tensor, weight: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    if interprets_bfloat16(x):
        dx, dweight = triton_convolution_backward(dout.float(), x.float(), weight, segments)
        return dx.to(x.dtype), dweight
    (B, H, _, D), K, x = x.shape, weight.shape[0], by_rows(x)
    weight, dout, segments = as_contiguous(weight), as_contiguous(dout), as_contiguous(segments)
    summed = _numbers(x, weight, SUMMED)
    # In float32, as it goes into the sums of K tokens.
    dsum = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    sums = torch.empty((B, H, summed["parts"], K, D), dtype=torch.float32, device=x.device)
    lines = B * H
    given = (x, weight, segments, dout, dsum, sums)
    strides = _strides(x)
    run_kernel(differentiate_convolution, summed["parts"] * lines, Launch(4, 1), *given, **strides, **summed, SUMMED=SUMMED)
    dx, numbers = torch.empty(x.shape, dtype=x.dtype, device=x.device), _numbers(x, weight)
    run_kernel(convolve_back, numbers["parts"] * lines, Launch(4, 1), dsum, weight, segments, dx, **numbers)
    return dx, sums.sum((0, 2)).transpose(0, 1)[:, :, None].to(weight.dtype)
