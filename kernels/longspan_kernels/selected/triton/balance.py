"""Triton kernels of causal Sinkhorn balancing. Triton is imported here: import this file lazily.

Iteration k of row i needs iteration k - 1 of row i and the sums of columns that iteration k has over rows before i. So one
program goes through a head's rows with all iterations at once, each a row behind the one before it: n + K steps instead of
n * K. What an iteration hands to the next lies in memory, where the backward pass reads it.

Legend: BH batch times heads, n blocks, K iterations, KP and BN the powers of two that hold K and n.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.launch.launcher import Launch, from_16_bytes, on_its_device, run_kernel
from longspan_kernels.selected.balance import NOTHING, padded

NONE = tl.constexpr(NOTHING)
NUMBERS_A_WARP = 256  # a step is short: what it waits for are exponentials and memory


@triton.jit
def rows_that_exist(BLOCKS, bh, n, H: tl.constexpr):
    if BLOCKS is not None:
        return tl.minimum(n, tl.load(BLOCKS + bh // H).to(tl.int32))
    return n


@triton.jit
def log_before(SCORES, LOGS, i, ks, js, allowed, n):
    """[KP, BN] logarithms that each iteration begins with: the scores, or what the iteration before made."""
    first = (ks == 0)[:, None]
    scores = tl.load(SCORES + i[:, None] * n + js[None, :], mask=allowed & first, other=NONE)
    logs = tl.load(LOGS + ((ks - 1) * n + i)[:, None] * n + js[None, :], mask=allowed & (ks > 0)[:, None], other=NONE)
    return tl.where(first, scores, logs)


@triton.jit(do_not_specialize=["n"])
def balance_rows(
    SCORES,
    OUT,
    LOGS,
    SUMS,
    BLOCKS,
    n: tl.int32,
    H: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BN: tl.constexpr,
):
    bh = tl.program_id(0)
    count = rows_that_exist(BLOCKS, bh, n, H)
    ks, js = tl.arange(0, KP), tl.arange(0, BN)
    matrix = bh.to(tl.int64) * n * n
    SCORES += matrix
    OUT += matrix
    LOGS += matrix * K
    SUMS += bh.to(tl.int64) * n * K
    columns = tl.full((KP, BN), NONE, tl.float32)  # logarithms of their sums so far
    for step in tl.range(0, n + K - 1):
        i = tl.cast(step, tl.int32) - ks
        inside = (ks < K) & (i >= 0) & (i < n)
        allowed = (inside & (i < count))[:, None] & (js[None, :] < i[:, None])
        before = log_before(SCORES, LOGS, i, ks, js, allowed, n)
        most = tl.max(before, 1)
        divided = most + tl.log(tl.sum(tl.exp(before - most[:, None]), 1))
        row = tl.where(allowed, before - divided[:, None], NONE)
        larger = tl.maximum(columns, row)
        columns = larger + tl.log(1.0 + tl.exp(tl.minimum(columns, row) - larger))
        made = tl.where(allowed, row - columns, NONE)
        there = inside[:, None] & (js < n)[None, :]
        tl.store(LOGS + (ks * n + i)[:, None] * n + js[None, :], made, mask=there)
        tl.store(OUT + i[:, None] * n + js[None, :], tl.exp(made), mask=there & (ks == K - 1)[:, None])
        tl.store(SUMS + ks * n + i, divided, mask=inside)
        tl.debug_barrier()  # the next step reads what others have written


@triton.jit(do_not_specialize=["n"])
def balance_back(
    DOUT,
    SCORES,
    LOGS,
    SUMS,
    DSCORES,
    HANDED,
    BLOCKS,
    n: tl.int32,
    H: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BN: tl.constexpr,
):
    """DSCORES; HANDED [BH, 2, KP, BN] is what an iteration hands to the one before, of this step and of the last."""
    bh = tl.program_id(0)
    count = rows_that_exist(BLOCKS, bh, n, H)
    ks, js = tl.arange(0, KP), tl.arange(0, BN)
    matrix = bh.to(tl.int64) * n * n
    DOUT += matrix
    SCORES += matrix
    DSCORES += matrix
    LOGS += matrix * K
    SUMS += bh.to(tl.int64) * n * K
    HANDED += bh.to(tl.int64) * 2 * KP * BN
    columns = tl.zeros((KP, BN), tl.float32)  # gradients of the columns' sums up to the row
    for step in tl.range(0, n + K - 1):
        i = n + K - 2 - tl.cast(step, tl.int32) - ks
        inside = (ks < K) & (i >= 0) & (i < n)
        allowed = (inside & (i < count))[:, None] & (js[None, :] < i[:, None])
        last = (ks == K - 1)[:, None]
        made = tl.load(LOGS + (ks * n + i)[:, None] * n + js[None, :], mask=allowed, other=NONE)
        before = log_before(SCORES, LOGS, i, ks, js, allowed, n)
        divided = tl.load(SUMS + ks * n + i, mask=inside, other=0.0)
        share = tl.where(allowed, tl.exp(made), 0.0)  # of a row in its column's sum so far
        from_out = tl.load(DOUT + i[:, None] * n + js[None, :], mask=allowed & last, other=0.0) * share
        parity = tl.cast(step, tl.int32) % 2
        at = HANDED + (1 - parity) * KP * BN + (ks + 1)[:, None] * BN + js[None, :]
        after = tl.load(at, mask=allowed & (ks < K - 1)[:, None], other=0.0)
        given = from_out + after
        through = columns - given
        drow = given + through * share
        columns = through * (1.0 - share)
        weights = tl.where(allowed, tl.exp(before - divided[:, None]), 0.0)
        dbefore = tl.where(allowed, drow - weights * tl.sum(drow, 1)[:, None], 0.0)
        tl.store(HANDED + parity * KP * BN + ks[:, None] * BN + js[None, :], dbefore)
        there = inside[:, None] & (js < n)[None, :]
        tl.store(DSCORES + i[:, None] * n + js[None, :], dbefore, mask=there & (ks == 0)[:, None])
        tl.debug_barrier()


def _sizes(heads: int, iterations: int, n: int) -> tuple[Launch, dict[str, int]]:
    KP, BN = padded(iterations), padded(n)
    return Launch(max(1, min(16, KP * BN // NUMBERS_A_WARP)), 1), {"n": n, "H": heads, "K": iterations, "KP": KP, "BN": BN}


def _existing(blocks: Tensor | None, batch: int) -> Tensor | None:
    return None if blocks is None else from_16_bytes(blocks.expand(batch).contiguous())


@on_its_device
def triton_balance(scores: Tensor, blocks: Tensor | None, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `balance._balance`."""
    B, H, n, _ = scores.shape
    scores = from_16_bytes(scores.contiguous())
    out = torch.empty_like(scores)
    logs, sums = scores.new_empty(B, H, iterations, n, n), scores.new_empty(B, H, iterations, n)
    choice, sizes = _sizes(H, iterations, n)
    run_kernel(balance_rows, B * H, choice, scores, out, logs, sums, _existing(blocks, B), **sizes)
    return out, logs, sums


@on_its_device
def triton_balance_backward(dout: Tensor, scores: Tensor, blocks: Tensor | None, logs: Tensor, sums: Tensor) -> Tensor:
    """Gradient of the scores."""
    B, H, n, _ = scores.shape
    choice, sizes = _sizes(H, logs.shape[2], n)
    dout, scores = (from_16_bytes(x.contiguous()) for x in (dout.float(), scores))
    handed = scores.new_empty(B * H, 2, sizes["KP"], sizes["BN"])
    dscores = torch.empty_like(scores)
    tensors = (dout, scores, logs, sums, dscores, handed, _existing(blocks, B))
    run_kernel(balance_back, B * H, choice, *tensors, **sizes)
    return dscores
