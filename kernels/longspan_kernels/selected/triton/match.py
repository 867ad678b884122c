"""Causal Sinkhorn matching with kernels: features of blocks, their gradients, and the products between.

Triton is imported here: import this file lazily. Legend: B batch, H heads, Hkv key/value heads, G = H / Hkv, T tokens, D head
width, BD as a power of two, n blocks, SIZE tokens a block, BN blocks at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import SMALL, alignment, on_its_device, readable, run_kernel, width_of
from longspan_kernels.selected.match import LEAST_DRAWN
from longspan_kernels.selected.triton.balance import triton_balance, triton_balance_backward

ADDED = 4096  # numbers that a scan adds up at a time
MOST_ROWS = 128
VARYING = ["q_b", "q_h", "k_b", "k_h", "heads", "kv_heads", "blocks", "query_programs", "q_t", "k_t"]


@triton.jit
def head_of(X, row, heads, x_b, x_h, ALIGN: tl.constexpr):
    """Where the tokens of head `row` of B x H begin."""
    return X + tl.multiple_of((row // heads).to(tl.int64) * x_b + (row % heads).to(tl.int64) * x_h, ALIGN)


@triton.jit
def block_sum(X, x_t, block, D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, SIZE: tl.constexpr):
    """The sum [BD] of a block's tokens."""
    offs_d = tl.arange(0, BD)
    total = tl.zeros([BD], tl.float32)
    for start in tl.range(0, SIZE, BR):
        row = start + tl.arange(0, BR)
        at = X + (block * SIZE + row).to(tl.int64)[:, None] * x_t + offs_d[None, :]
        x = tl.load(at, mask=(row < SIZE)[:, None] & (offs_d < D)[None, :], other=0.0)
        total += tl.sum(x.to(tl.float32), 0)
    return total


@triton.jit(do_not_specialize=VARYING)
def sum_blocks(
    Q,
    K,
    SUMS,
    KEYS,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    heads: tl.int32,
    kv_heads: tl.int32,
    blocks: tl.int32,
    query_programs: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
    SIZE: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """SUMS [B, H, n, D] of the queries of each block, and the mean KEYS [B, Hkv, n, D]: a block a program, queries first."""
    pid = tl.program_id(0)
    offs_d = tl.arange(0, BD)
    if pid < query_programs:
        X = head_of(Q, pid // blocks, heads, q_b, q_h, ALIGN)
        total = block_sum(X, tl.multiple_of(q_t, ALIGN), pid % blocks, D, BD, BR, SIZE)
        tl.store(SUMS + pid.to(tl.int64) * D + offs_d, total, mask=offs_d < D)
    else:
        at = pid - query_programs
        X = head_of(K, at // blocks, kv_heads, k_b, k_h, ALIGN)
        total = block_sum(X, tl.multiple_of(k_t, ALIGN), at % blocks, D, BD, BR, SIZE)
        tl.store(KEYS + at.to(tl.int64) * D + offs_d, total / SIZE, mask=offs_d < D)


@triton.jit(do_not_specialize=VARYING)
def average_so_far(
    Q,
    SUMS,
    QUERIES,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    heads: tl.int32,
    blocks: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    SIZE: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """QUERIES [B, H, n, D], the mean of all queries up to the first of each block: a head a program."""
    pid = tl.program_id(0)
    offs_d = tl.arange(0, BD)
    X = head_of(Q, pid, heads, q_b, q_h, ALIGN)
    SUMS += pid.to(tl.int64) * blocks * D
    QUERIES += pid.to(tl.int64) * blocks * D
    before = tl.zeros([BD], tl.float32)
    for begin in tl.range(0, blocks, BN):
        block = begin + tl.arange(0, BN)
        there = (block < blocks)[:, None] & (offs_d < D)[None, :]
        place = block[:, None] * D + offs_d[None, :]
        first = tl.load(
            X + (block * SIZE).to(tl.int64)[:, None] * tl.multiple_of(q_t, ALIGN) + offs_d[None, :], mask=there, other=0.0
        )
        earlier = tl.load(SUMS + place - D, mask=there & (block > 0)[:, None], other=0.0)
        total = before[None, :] + tl.cumsum(earlier, 0) + first.to(tl.float32)
        tl.store(QUERIES + place, total / (block * SIZE + 1).to(tl.float32)[:, None], mask=there)
        before += tl.sum(earlier, 0)


@triton.jit(do_not_specialize=VARYING)
def add_later(DQUERIES, LATER, blocks: tl.int32, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, SIZE: tl.constexpr):
    """LATER [B, H, n, D], what the means of later blocks add to the gradient of a block's queries: a head a program."""
    pid = tl.program_id(0)
    offs_d = tl.arange(0, BD)
    DQUERIES += pid.to(tl.int64) * blocks * D
    LATER += pid.to(tl.int64) * blocks * D
    after = tl.zeros([BD], tl.float32)
    for step in tl.range(0, (blocks + BN - 1) // BN):
        block = ((blocks + BN - 1) // BN - 1 - step) * BN + tl.arange(0, BN)
        columns = (offs_d < D)[None, :]
        place = block[:, None] * D + offs_d[None, :]
        later = tl.load(DQUERIES + place + D, mask=(block + 1 < blocks)[:, None] & columns, other=0.0)
        later = later / ((block + 1) * SIZE + 1).to(tl.float32)[:, None]
        tl.store(LATER + place, after[None, :] + tl.cumsum(later, 0, reverse=True), mask=(block < blocks)[:, None] & columns)
        after += tl.sum(later, 0)


@triton.jit(do_not_specialize=VARYING)
def spread_gradients(
    DQUERIES,
    LATER,
    DKEYS,
    DQ,
    DK,
    blocks: tl.int32,
    query_programs: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
    SIZE: tl.constexpr,
):
    """DQ [B, H, T, D], and what the mean keys add to DK [B, Hkv, T, D]: a block a program, queries first."""
    pid = tl.program_id(0)
    offs_d = tl.arange(0, BD)
    columns = offs_d < D
    if pid < query_programs:
        place = pid.to(tl.int64) * D + offs_d
        later = tl.load(LATER + place, mask=columns, other=0.0)
        own = tl.load(DQUERIES + place, mask=columns, other=0.0) / ((pid % blocks) * SIZE + 1).to(tl.float32)
        DQ += pid.to(tl.int64) * SIZE * D
        for start in tl.range(0, SIZE, BR):
            row = start + tl.arange(0, BR)
            dq = later[None, :] + tl.where(row == 0, 1.0, 0.0)[:, None] * own[None, :]
            at = DQ + row[:, None] * D + offs_d[None, :]
            tl.store(at, dq.to(DQ.dtype.element_ty), mask=(row < SIZE)[:, None] & columns[None, :])
    else:
        key = (pid - query_programs).to(tl.int64)
        each = tl.load(DKEYS + key * D + offs_d, mask=columns, other=0.0) / SIZE
        DK += key * SIZE * D
        for start in tl.range(0, SIZE, BR):
            row = start + tl.arange(0, BR)
            at, there = DK + row[:, None] * D + offs_d[None, :], (row < SIZE)[:, None] & columns[None, :]
            dk = tl.load(at, mask=there, other=0.0).to(tl.float32) + each[None, :]
            tl.store(at, dk.to(DK.dtype.element_ty), mask=there)


def _sizes(block_size: int, D: int) -> dict:
    return {"D": D, "BD": width_of(D), "BR": min(MOST_ROWS, 1 << (block_size - 1).bit_length()), "SIZE": block_size}


def features(q: Tensor, k: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The mean of all queries up to the first of each block [B, H, n, D], and the mean keys [B, Hkv, n, D], in float32."""
    q, k = readable(q), readable(k)
    (B, H, _, D), kv_heads, n = q.shape, k.shape[1], q.shape[2] // block_size
    sums, queries, keys = (torch.empty((B, h, n, D), dtype=torch.float32, device=q.device) for h in (H, H, kv_heads))
    sizes = {**_sizes(block_size, D), "ALIGN": alignment(D, q, k)}
    strides = {f"{name}_{axis}": x.stride(dim) for name, x in (("q", q), ("k", k)) for dim, axis in enumerate("bht")}
    counts = {"heads": H, "kv_heads": kv_heads, "blocks": n, "query_programs": B * H * n}
    run_kernel(sum_blocks, B * (H + kv_heads) * n, SMALL, q, k, sums, keys, **strides, **counts, **sizes)
    of_queries = {name: strides[name] for name in ("q_b", "q_h", "q_t")}
    sizes["BN"] = ADDED // sizes["BD"]
    del sizes["BR"]
    run_kernel(average_so_far, B * H, SMALL, q, sums, queries, **of_queries, heads=H, blocks=n, **sizes)
    return queries, keys


def add_feature_gradients(dqueries: Tensor, dkeys: Tensor, dk: Tensor, block_size: int) -> Tensor:
    """The gradient of q in the dtype of dk, contiguous; adds that of mean keys to dk [B, Hkv, T, D], which is contiguous."""
    B, H, n, D = dqueries.shape
    later, sizes = torch.empty_like(dqueries), _sizes(block_size, D)
    dq = dk.new_empty((B, H, n * block_size, D))
    scan = {name: sizes[name] for name in ("D", "BD", "SIZE")}
    run_kernel(add_later, B * H, SMALL, dqueries, later, blocks=n, **scan, BN=ADDED // sizes["BD"])
    tensors, counts = (dqueries, later, dkeys, dq, dk), {"blocks": n, "query_programs": B * H * n}
    run_kernel(spread_gradients, B * (H + dk.shape[1]) * n, SMALL, *tensors, **counts, **sizes)
    return dq


@on_its_device
def triton_match(
    q: Tensor, k: Tensor, v: Tensor, drawn: Tensor | None, block_size: int, iterations: int, scale: float, noise: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `match._match_blocks`."""
    if interprets_bfloat16(q):
        found = triton_match(q.float(), k.float(), v.float(), drawn, block_size, iterations, scale, noise)
        k_matched, v_matched, queries, keys, shares, balanced, sums = found
        return k_matched.to(k.dtype), v_matched.to(k.dtype), queries, keys, shares.to(k.dtype), balanced, sums
    (B, H, T, D), kv_heads, n = q.shape, k.shape[1], q.shape[2] // block_size
    flat, rows = B * kv_heads, H // kv_heads * n  # query heads that share keys are rows of one product
    queries, keys = features(q, k, block_size)
    a, b = queries.view(flat, rows, D), keys.view(flat, n, D).mT
    if drawn is None:
        scores = torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)
    else:
        scores = drawn.contiguous().clamp(min=LEAST_DRAWN).log_().view(flat, rows, n).baddbmm_(a, b, beta=-noise, alpha=scale)
    shares, balanced, sums = triton_balance(scores.view(B, H, n, n), None, iterations, k.dtype)
    mixed = [shares.view(flat, rows, n) @ x.reshape(flat, n, block_size * D) for x in (k, v)]
    k_matched, v_matched = (x.view(B, H, T, D) for x in mixed)
    return k_matched, v_matched, queries, keys, shares, balanced, sums


@on_its_device
def triton_match_backward(
    dk_matched: Tensor,
    dv_matched: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    keys: Tensor,
    shares: Tensor,
    rows: Tensor,
    sums: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    if interprets_bfloat16(k):
        a, b, c, d, shares = (x.float() for x in (dk_matched, dv_matched, k, v, shares))
        dq, dk, dv = triton_match_backward(a, b, c, d, queries, keys, shares, rows, sums, scale)
        return dq.to(k.dtype), dk.to(k.dtype), dv.to(k.dtype)
    (B, H, n, D), kv_heads = queries.shape, k.shape[1]
    flat, stacked, block_size = B * kv_heads, H // kv_heads * n, k.shape[2] // n
    matrix = shares.view(flat, stacked, n)
    dmixed = [x.reshape(flat, stacked, block_size * D) for x in (dk_matched, dv_matched)]
    mixed = [x.reshape(flat, n, block_size * D) for x in (k, v)]
    dshares = torch.bmm(dmixed[0], mixed[0].mT).baddbmm_(dmixed[1], mixed[1].mT)
    dscores = triton_balance_backward(dshares.view(B, H, n, n), None, rows, sums).view(flat, stacked, n)
    dk, dv = (torch.bmm(matrix.mT, x).view(k.shape) for x in dmixed)
    nothing = dscores.new_empty(())
    a, b = queries.view(flat, stacked, D), keys.view(flat, n, D)
    dqueries = torch.baddbmm(nothing, dscores, b, beta=0, alpha=scale).view(queries.shape)
    dkeys = torch.baddbmm(nothing, dscores.mT, a, beta=0, alpha=scale).view(keys.shape)
    return add_feature_gradients(dqueries, dkeys, dk, block_size), dk, dv
