"""Triton kernels that merge two or three parts by their log-sum-exps. Triton is imported here: import this file lazily.

Rows are the tokens of all heads, one after another. Legend: BM rows of a program, BD the head width D as a power of two.
"""

# Triton adds tuples, but does not unpack into them; their types are its own.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import Launch, as_contiguous, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton.common import of_row, rows_at, store_rows

ROWS = 32  # of a program
NOTHING = tl.constexpr(-1e30)


@triton.jit
def shares(LSE_A, LSE_B, LSE_C, row, there, least, length, last_from):
    """The share of each part, 0 where the log-sum-exp over all of them is not above `least`; see `merge_by_lse`."""
    N: tl.constexpr = 2 if LSE_C is None else 3
    token = (row % length).to(tl.int32)
    known = ()
    for n in tl.static_range(N):
        lse = tl.load((LSE_A if n == 0 else LSE_B if n == 1 else LSE_C) + row, mask=there, other=0.0).to(tl.float32)
        lse = tl.where(tl.abs(lse) == float("inf"), NOTHING, lse)
        if n == N - 1:
            lse = tl.where(token < last_from, NOTHING, lse)
        known = known + (lse,)
    most = tl.maximum(known[0], known[1])
    if N == 3:
        most = tl.maximum(most, known[2])
    total = tl.exp(known[0] - most) + tl.exp(known[1] - most)
    if N == 3:
        total += tl.exp(known[2] - most)
    total = most + tl.log(total)
    found = ()
    for n in tl.static_range(N):
        found = found + (tl.where(total > least, tl.exp(known[n] - total), 0.0),)
    return found


@triton.jit(do_not_specialize=["rows", "length", "last_from"])
def merge_branches(
    A,
    LSE_A,
    B,
    LSE_B,
    C,
    LSE_C,
    OUT,
    rows: tl.int64,
    length: tl.int64,
    last_from: tl.int32,
    least: tl.float32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    there = row < rows
    share = shares(LSE_A, LSE_B, LSE_C, row, there, least, length, last_from)
    total = tl.zeros([BM, BD], tl.float32)
    N: tl.constexpr = 2 if C is None else 3
    for n in tl.static_range(N):
        part = rows_at(A if n == 0 else B if n == 1 else C, of_row(row, D), there, D, BD).to(tl.float32)
        total += share[n][:, None] * part
    store_rows(OUT, row, there, total, D, BD)


@triton.jit(do_not_specialize=["rows", "length", "last_from"])
def differentiate_branches(
    DOUT,
    A,
    LSE_A,
    B,
    LSE_B,
    C,
    LSE_C,
    DA,
    DLSE_A,
    DB,
    DLSE_B,
    DC,
    DLSE_C,
    rows: tl.int64,
    length: tl.int64,
    last_from: tl.int32,
    least: tl.float32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    there = row < rows
    share = shares(LSE_A, LSE_B, LSE_C, row, there, least, length, last_from)
    dout = rows_at(DOUT, of_row(row, D), there, D, BD).to(tl.float32)
    N: tl.constexpr = 2 if C is None else 3
    dots, mean = (), tl.zeros([BM], tl.float32)
    for n in tl.static_range(N):
        part = rows_at(A if n == 0 else B if n == 1 else C, of_row(row, D), there, D, BD).to(tl.float32)
        dots = dots + (tl.sum(dout * part, 1),)
        mean += share[n] * dots[n]
        store_rows(DA if n == 0 else DB if n == 1 else DC, row, there, share[n][:, None] * dout, D, BD)
    for n in tl.static_range(N):
        place = (DLSE_A if n == 0 else DLSE_B if n == 1 else DLSE_C) + row
        tl.store(place, share[n] * (dots[n] - mean), mask=there)


def _numbers(x: Tensor, least: float, last_from: int) -> dict:
    *_, T, D = x.shape
    constants = {"D": D, "BD": width_of(D), "BM": ROWS}
    return {"rows": x.numel() // D, "length": max(1, T), "last_from": last_from, "least": least, **constants}


@on_its_device
def triton_merge(
    a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor, c: Tensor | None, lse_c: Tensor | None, least: float, last_from: int = 0
) -> Tensor:
    """As `merge.merge_by_lse`."""
    if interprets_bfloat16(a):
        wide = None if c is None else c.float()
        return triton_merge(a.float(), lse_a, b.float(), lse_b, wide, lse_c, least, last_from).to(a.dtype)
    given = [as_contiguous(x) for x in (a, lse_a, b, lse_b, c, lse_c)]
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    numbers = _numbers(a, least, last_from)
    if numbers["rows"]:
        run_kernel(merge_branches, -(-numbers["rows"] // ROWS), Launch(4, 1), *given, out, **numbers)
    return out


@on_its_device
def triton_merge_backward(
    dout: Tensor,
    a: Tensor,
    lse_a: Tensor,
    b: Tensor,
    lse_b: Tensor,
    c: Tensor | None,
    lse_c: Tensor | None,
    least: float,
    last_from: int = 0,
) -> list[Tensor]:
    """Gradients of every part and its log-sum-exp, in the order of the arguments."""
    if interprets_bfloat16(a):
        wide = None if c is None else c.float()
        found = triton_merge_backward(dout.float(), a.float(), lse_a, b.float(), lse_b, wide, lse_c, least, last_from)
        likes = [x for x in (a, lse_a, b, lse_b, c, lse_c) if x is not None]
        return [x.to(like.dtype) for x, like in zip(found, likes, strict=True)]
    given = [as_contiguous(x) for x in (a, lse_a, b, lse_b, c, lse_c)]
    found = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in given]
    numbers = _numbers(a, least, last_from)
    if numbers["rows"]:
        run_kernel(
            differentiate_branches, -(-numbers["rows"] // ROWS), Launch(4, 1), as_contiguous(dout), *given, *found, **numbers
        )
    return [x for x in found if x is not None]
