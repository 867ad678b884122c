"""Triton kernel that finds the buckets of vectors by direction. Triton is imported here: import this file lazily.

Legend: BM vectors of a tile, BD the head width D as a power of two, R rounds, F directions a round, HALF of them for one factor
of the buckets, BH a power of two that holds them, PARTS the bfloat16 numbers whose sum is one of q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import INTERPRETED
from longspan_kernels.bucketed.triton.common import tokens_of_program
from longspan_kernels.launch.launcher import (
    Launch,
    alignment,
    as_contiguous,
    from_16_bytes,
    on_its_device,
    readable,
    run_kernel,
    width_of,
)
from longspan_kernels.selected.triton.choose_kernels import NOBODY, PARTS, in_parts


@triton.jit
def nearest_direction(
    first, second, third, TURNS, stride, HALF: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """[BM] which of HALF directions, rows of `TURNS`, or of their opposites, the columns of [BD, BM] are nearest to."""
    BH: tl.constexpr = 16 if HALF <= 16 else triton.next_power_of_2(HALF)
    number = tl.arange(0, BH)
    offs_d = tl.arange(0, BD)
    there = (number < HALF)[:, None]
    turn = tl.load(TURNS + offs_d[None, :] * stride + number[:, None], mask=there & (offs_d < D)[None, :], other=0.0)
    large, middle, small = in_parts(turn, 3, INTERPRETED)
    turned = tl.dot(small, first)  # (BH, BM), as in `product_of_parts`
    if PARTS > 1:
        turned = tl.dot(middle, second, turned)
        if PARTS > 2:
            turned = tl.dot(large, third, turned)
    turned = tl.dot(middle, first, turned)
    if PARTS > 1:
        turned = tl.dot(large, second, turned)
    turned = tl.dot(large, first, turned)
    along = tl.max(tl.where(there, turned, float("-inf")), 0)
    against = tl.min(tl.where(there, turned, float("inf")), 0)
    nearest = tl.min(tl.where(there & (turned == along[None, :]), number[:, None], NOBODY), 0)
    opposite = tl.min(tl.where(there & (turned == against[None, :]), number[:, None], NOBODY), 0)
    found = tl.where(along >= -against, nearest, opposite + HALF)
    return tl.minimum(found, 2 * HALF - 1)  # NaN is nearest to none


@triton.jit(do_not_specialize=["q_b", "q_h", "q_t", "length", "tiles", "heads"])
def hash_directions(
    Q,
    ROTATIONS,
    LENGTHS,
    KEYS,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    length: tl.int32,
    tiles: tl.int32,
    heads: tl.int32,
    FACTORS: tl.constexpr,
    R: tl.constexpr,
    F: tl.constexpr,
    BUCKETS: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """KEYS [B H R, T] of Q [B, H, T, D] by ROTATIONS [H, D, R, F].

    Directions are the rows of the product: with so few columns Hopper's instructions go wrong.
    """
    bh, b, h, token, end = tokens_of_program(LENGTHS, tiles, heads, length, BM)
    offs_d = tl.arange(0, BD)
    at = Q + tl.multiple_of(b.to(tl.int64) * q_b + h.to(tl.int64) * q_h, ALIGN)
    at = at + token.to(tl.int64)[:, None] * q_t + offs_d[None, :]
    q = tl.load(at, mask=(token < end)[:, None] & (offs_d < D)[None, :], other=0.0)
    first, second, third = in_parts(q, PARTS, INTERPRETED)
    first, second, third = tl.trans(first), tl.trans(second), tl.trans(third)  # (BD, BM)
    ROTATIONS += h * (D * R * F)
    for r in tl.range(0, R):
        bucket = tl.zeros([BM], tl.int32)
        skipped = 0
        scale = 1
        for f in tl.static_range(len(FACTORS)):
            TURNS = ROTATIONS + (r * F + skipped)
            found = nearest_direction(first, second, third, TURNS, R * F, FACTORS[f] // 2, D, BD, PARTS)
            bucket += found * scale
            skipped += FACTORS[f] // 2
            scale *= FACTORS[f]
        row = bh * R + r
        key = row * (BUCKETS + 1) + tl.where(token < end, bucket, BUCKETS)
        tl.store(KEYS + row.to(tl.int64) * length + token, key, mask=token < length)


@on_its_device
def triton_hash_keys(q: Tensor, rotations: Tensor, factors: Sequence[int], lengths: Tensor | None) -> Tensor:
    """As `hashing.hash_keys`."""
    (B, H, T, D), R = q.shape, rotations.shape[2]
    q, rotations = readable(q), from_16_bytes(rotations.float().contiguous())
    keys = torch.empty((B * H * R, T), dtype=torch.int32, device=q.device)
    lengths = as_contiguous(lengths)
    BM = 128 if D <= 64 and q.dtype != torch.float32 else 64
    tiles = -(-T // BM)
    q_b, q_h, q_t, _ = q.stride()
    numbers = {
        "q_b": q_b,
        "q_h": q_h,
        "q_t": q_t,
        "length": T,
        "tiles": tiles,
        "heads": H,
        "FACTORS": tuple(factors),
        "R": R,
        "F": rotations.shape[3],
        "BUCKETS": math.prod(factors),
        "D": D,
        "BD": width_of(D),
        "BM": BM,
        "PARTS": PARTS[q.dtype],
        "ALIGN": alignment(D, q),
    }
    run_kernel(hash_directions, tiles * B * H, Launch(4, 1), q, rotations, lengths, keys, **numbers)
    return keys
