"""Triton kernels of the gated sum of two or three branches. Triton is imported here: import this file lazily.

Rows are the tokens of all heads, one after another. Legend: BM rows of a program, BD the head width D as a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import Launch, as_contiguous, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton.common import of_row, rows_at, store_rows

ROWS = 32  # of a program


@triton.jit(do_not_specialize=["rows"])
def add_gated(GATES, A, B, C, OUT, rows: tl.int64, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    there = row < rows
    total = tl.zeros([BM, BD], tl.float32)
    N: tl.constexpr = 2 if C is None else 3
    for n in tl.static_range(N):
        part = rows_at(A if n == 0 else B if n == 1 else C, of_row(row, D), there, D, BD).to(tl.float32)
        total += tl.load(GATES + N * row + n, mask=there, other=0.0).to(tl.float32)[:, None] * part
    store_rows(OUT, row, there, total, D, BD)


@triton.jit(do_not_specialize=["rows"])
def differentiate_gated(
    DOUT, GATES, A, B, C, DGATES, DA, DB, DC, rows: tl.int64, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    there = row < rows
    dout = rows_at(DOUT, of_row(row, D), there, D, BD).to(tl.float32)
    N: tl.constexpr = 2 if C is None else 3
    for n in tl.static_range(N):
        part = rows_at(A if n == 0 else B if n == 1 else C, of_row(row, D), there, D, BD).to(tl.float32)
        gate = tl.load(GATES + N * row + n, mask=there, other=0.0).to(tl.float32)
        dgate = tl.sum(dout * part, 1).to(DGATES.dtype.element_ty)
        tl.store(DGATES + N * row + n, dgate, mask=there)
        store_rows(DA if n == 0 else DB if n == 1 else DC, row, there, gate[:, None] * dout, D, BD)


@on_its_device
def triton_gated_sum(gates: Tensor, a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
    """As `mix.gated_sum`."""
    if interprets_bfloat16(a):
        return triton_gated_sum(gates.float(), a.float(), b.float(), None if c is None else c.float()).to(a.dtype)
    gates, a, b = (from_16_bytes(x.contiguous()) for x in (gates, a, b))
    c = as_contiguous(c)
    out, rows = torch.empty_like(a), a.numel() // a.shape[-1]
    programs, D = -(-rows // ROWS), a.shape[-1]
    run_kernel(add_gated, programs, Launch(4, 1), gates, a, b, c, out, rows=rows, D=D, BD=width_of(D), BM=ROWS)
    return out


@on_its_device
def triton_gated_sum_backward(dout: Tensor, gates: Tensor, a: Tensor, b: Tensor, c: Tensor | None) -> list[Tensor]:
    """Gradients of the gates and of the branches."""
    given = [x for x in (gates, a, b, c) if x is not None]
    if interprets_bfloat16(a):
        found = triton_gated_sum_backward(dout.float(), *(x.float() for x in given), *(None,) * (4 - len(given)))
        return [x.to(like.dtype) for x, like in zip(found, given, strict=True)]
    dout, *given = (from_16_bytes(x.contiguous()) for x in (dout, *given))
    found = [torch.empty_like(x) for x in given]
    absent = (None,) * (4 - len(given))
    rows, D = a.numel() // a.shape[-1], a.shape[-1]
    numbers = {"rows": rows, "D": D, "BD": width_of(D), "BM": ROWS}
    programs = -(-rows // ROWS)
    run_kernel(differentiate_gated, programs, Launch(4, 1), dout, *given, *absent, *found, *absent, **numbers)
    return found
