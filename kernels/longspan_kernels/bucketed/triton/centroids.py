"""Triton kernels of clusters: the nearest centroid of each vector, sums of clusters. Triton is imported here: import lazily.

Legend: BM vectors x BN centroids a tile, BD the head width D as a power of two, C centroids (count), PARTS the bfloat16 numbers
whose sum is one of q.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import INTERPRETED, interprets_bfloat16
from longspan_kernels.bucketed.triton.common import tokens_of_program
from longspan_kernels.launch.launcher import SMALL, Launch, as_contiguous, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton.call_layout import by_rows, in_units
from longspan_kernels.selected.triton.choose_kernels import NOBODY, PARTS, in_parts, product_of_parts
from longspan_kernels.selected.triton.common import elements, rows_at

CENTROIDS = 64  # of a tile: products of fewer columns go wrong on Hopper
ROWS = 64  # of a cluster, added up at a time


@triton.jit(do_not_specialize=["q_b", "q_h", "q_t", "length", "tiles", "heads", "count"])
def find_nearest(
    Q,
    MEANS,
    LENGTHS,
    KEYS,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    length: tl.int32,
    tiles: tl.int32,
    heads: tl.int32,
    count: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PARTS: tl.constexpr,
):
    """KEYS [B H, T] of Q [B, H, T, D] by MEANS [H, C, D]."""
    bh, b, h, token, end = tokens_of_program(LENGTHS, tiles, heads, length, BM)
    Q += elements(b.to(tl.int64) * q_b + h.to(tl.int64) * q_h, D)
    q = rows_at(Q, token.to(tl.int64) * q_t, token < end, D, BD)
    first, second, third = in_parts(q, PARTS, INTERPRETED)
    MEANS += h * count * D
    offs_d = tl.arange(0, BD)
    most = tl.full([BM], float("-inf"), tl.float32)
    nearest = tl.zeros([BM], tl.int32)
    for begin in tl.range(0, count, BN):
        number = begin + tl.arange(0, BN)
        there = (number < count)[:, None] & (offs_d < D)[None, :]
        mean = tl.load(MEANS + number[:, None] * D + offs_d[None, :], mask=there, other=0.0)
        large, middle, small = in_parts(mean, 3, INTERPRETED)
        large, middle, small = tl.trans(large), tl.trans(middle), tl.trans(small)
        dots = product_of_parts(first, second, third, large, middle, small, PARTS)  # (BM, BN)
        dots = tl.where((number < count)[None, :], dots, float("-inf"))
        best = tl.max(dots, 1)
        chosen = tl.min(tl.where(dots == best[:, None], number[None, :], NOBODY), 1)
        nearest = tl.where(best > most, chosen, nearest)  # the first among equals
        most = tl.maximum(most, best)
    key = bh * (count + 1) + tl.where(token < end, nearest, count)
    tl.store(KEYS + bh.to(tl.int64) * length + token, key, mask=token < length)


@triton.jit(do_not_specialize=["q_b", "q_h", "q_t", "length", "batch", "heads", "count"])
def add_clusters(
    Q,
    ORDER,
    START,
    SUMS,
    COUNTS,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    length: tl.int32,
    batch: tl.int32,
    heads: tl.int32,
    count: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """Adds one cluster of one head to SUMS [H, C, D] and COUNTS [H, C]: sequence after sequence, in the order of tokens."""
    pid = tl.program_id(0)
    h, c = pid // count, pid % count
    offs_d = tl.arange(0, BD)
    total = tl.zeros([BD], tl.float32)
    members = 0
    for b in tl.range(0, batch):
        n = b * heads + h
        key = n * (count + 1) + c
        start, stop = tl.load(START + key), tl.load(START + key + 1)  # places in the order of all sequences
        head = Q + elements(tl.cast(b, tl.int64) * q_b + h.to(tl.int64) * q_h, D)
        members += stop - start
        for place in tl.range(start, stop, BM):
            at = place + tl.arange(0, BM)
            token = tl.load(ORDER + tl.minimum(at, stop - 1))
            x = rows_at(head, token.to(tl.int64) * q_t, at < stop, D, BD).to(tl.float32)
            factor = 1.0 / tl.sqrt(tl.sum(x * x, 1) / D + 1e-6)
            total += tl.sum(x * factor[:, None], 0)
    sums = SUMS + pid * D + offs_d
    total += tl.load(sums, mask=offs_d < D, other=0.0).to(tl.float32)
    tl.store(sums, total.to(SUMS.dtype.element_ty), mask=offs_d < D)
    tl.store(COUNTS + pid, (tl.load(COUNTS + pid).to(tl.float32) + members).to(COUNTS.dtype.element_ty))


def _head_strides(q: Tensor) -> dict[str, int]:
    return dict(zip(("q_b", "q_h", "q_t"), in_units(q), strict=True))


@on_its_device
def triton_nearest_keys(q: Tensor, means: Tensor, lengths: Tensor | None) -> Tensor:
    """As `centroids.nearest_keys`."""
    (B, H, T, D), C = q.shape, means.shape[1]
    parts = PARTS[q.dtype]
    if interprets_bfloat16(q):
        q = q.float()
    q, means = by_rows(q), from_16_bytes(means.float().contiguous())
    keys = torch.empty((B * H, T), dtype=torch.int32, device=q.device)
    lengths = as_contiguous(lengths)
    BM = 128 if D <= 64 and parts == 1 else 64
    tiles = -(-T // BM)
    sizes = {"length": T, "tiles": tiles, "heads": H, "count": C, "D": D, "BD": width_of(D)}
    made_for = {"BM": BM, "BN": CENTROIDS, "PARTS": parts}
    run_kernel(find_nearest, tiles * B * H, Launch(4, 1), q, means, lengths, keys, **_head_strides(q), **sizes, **made_for)
    return keys


@on_its_device
def triton_add_up_buckets(q: Tensor, order: Tensor, start: Tensor, sums: Tensor, counts: Tensor) -> None:
    """As `centroids.add_up_buckets`."""
    if interprets_bfloat16(q):
        q = q.float()
    (B, H, T, D), C = q.shape, sums.shape[1]
    q = by_rows(q)
    sizes = {"length": T, "batch": B, "heads": H, "count": C, "D": D, "BD": width_of(D), "BM": ROWS}
    run_kernel(add_clusters, H * C, SMALL, q, order, start, sums, counts, **_head_strides(q), **sizes)
