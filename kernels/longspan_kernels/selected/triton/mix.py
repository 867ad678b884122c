"""Triton kernels of the gated sum of three branches. Triton is imported here: import this file lazily.

Rows are the tokens of all heads, one after another. Legend: BM rows of a program, BD the head width D as a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import Launch, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton.common import of_row, rows_at, store_rows

ROWS = 32  # of a program


@triton.jit(do_not_specialize=["rows"])
def add_gated(GATES, A, B, C, OUT, rows: tl.int64, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    there = row < rows
    total = tl.zeros([BM, BD], tl.float32)
    for n in tl.static_range(3):
        part = rows_at(A if n == 0 else B if n == 1 else C, of_row(row, D), there, D, BD).to(tl.float32)
        total += tl.load(GATES + 3 * row + n, mask=there, other=0.0).to(tl.float32)[:, None] * part
    store_rows(OUT, row, there, total, D, BD)


@triton.jit(do_not_specialize=["rows"])
def differentiate_gated(
    DOUT, GATES, A, B, C, DGATES, DA, DB, DC, rows: tl.int64, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    there = row < rows
    dout = rows_at(DOUT, of_row(row, D), there, D, BD).to(tl.float32)
    for n in tl.static_range(3):
        part = rows_at(A if n == 0 else B if n == 1 else C, of_row(row, D), there, D, BD).to(tl.float32)
        gate = tl.load(GATES + 3 * row + n, mask=there, other=0.0).to(tl.float32)
        dgate = tl.sum(dout * part, 1).to(DGATES.dtype.element_ty)
        tl.store(DGATES + 3 * row + n, dgate, mask=there)
        store_rows(DA if n == 0 else DB if n == 1 else DC, row, there, gate[:, None] * dout, D, BD)


@on_its_device
def triton_gated_sum(gates: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """As `mix.gated_sum`."""
    if interprets_bfloat16(a):
        return triton_gated_sum(gates.float(), a.float(), b.float(), c.float()).to(a.dtype)
    gates, a, b, c = (from_16_bytes(x.contiguous()) for x in (gates, a, b, c))
    out, rows = torch.empty_like(a), a.numel() // a.shape[-1]
    programs, D = -(-rows // ROWS), a.shape[-1]
    run_kernel(add_gated, programs, Launch(4, 1), gates, a, b, c, out, rows=rows, D=D, BD=width_of(D), BM=ROWS)
    return out


@on_its_device
def triton_gated_sum_backward(
    dout: Tensor, gates: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gates and of the branches."""
    if interprets_bfloat16(a):
        found = triton_gated_sum_backward(dout.float(), gates.float(), a.float(), b.float(), c.float())
        return found[0].to(gates.dtype), found[1].to(a.dtype), found[2].to(a.dtype), found[3].to(a.dtype)
    tensors = [from_16_bytes(x.contiguous()) for x in (dout, gates, a, b, c)]
    dgates, da, db, dc = (torch.empty_like(x) for x in tensors[1:])
    rows, D = a.numel() // a.shape[-1], a.shape[-1]
    numbers = {"rows": rows, "D": D, "BD": width_of(D), "BM": ROWS}
    run_kernel(differentiate_gated, -(-rows // ROWS), Launch(4, 1), *tensors, dgates, da, db, dc, **numbers)
    return dgates, da, db, dc
