"""Launches the Triton kernels of causal Sinkhorn balancing; `balance_kernels.py` and, for few blocks, `balance_head.py` say how
they go about it.

Triton is imported here: import this file lazily. Legend: B batch, H heads, n blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.launch.launcher import Launch, from_16_bytes, on_its_device, run_kernel
from longspan_kernels.selected.balance import ROWS
from longspan_kernels.selected.triton.balance_head import balance_head, balance_head_back
from longspan_kernels.selected.triton.balance_kernels import (
    balance_back,
    balance_back_columns,
    balance_back_end,
    balance_columns,
    balance_end,
    balance_rows,
)

COLUMNS = 64  # of a tile: a warp's threads hold two each, of all its rows
ADDED = 32  # columns that a program adds up over the tiles
WARP = Launch(1, 1)
MOST_OF_A_HEAD = 256  # blocks that one program goes through: more of them take longer so than the host takes for launches


class _Sizes:
    """How the launches of a call are cut. Matrices of `padded` blocks, whole units of 16, of which `size` exist at most."""

    def __init__(self, batch: int, heads: int, size: int, iterations: int) -> None:
        units = -(-size // 16)
        self.padded = 16 * units
        self.tiles = self.padded // ROWS
        self.programs, self.column_programs = batch * heads * self.tiles, batch * heads * -(-self.padded // ADDED)
        self.columns = {"units": units, "tiles": self.tiles, "ROWS": ROWS, "BC": ADDED}
        self.rows = {**self.columns, "size": size, "heads": heads, "iterations": iterations, "BC": COLUMNS}
        self.by_head = size <= MOST_OF_A_HEAD
        self.heads = batch * heads
        columns = max(32, 1 << (size - 1).bit_length())
        self.head = {**{name: self.rows[name] for name in ("units", "size", "heads", "iterations", "ROWS")}, "BC": columns}
        self.launch = Launch(max(1, columns // COLUMNS), 1)  # a thread has two columns, or one

    def wide(self, x: Tensor) -> Tensor:
        """x [B, H, n, n] with the rows and columns that fill whole units."""
        more = self.padded - x.shape[-1]
        return from_16_bytes(torch.nn.functional.pad(x, (0, more, 0, more)) if more else x.contiguous())

    def narrow(self, x: Tensor) -> Tensor:
        """The first n rows and columns."""
        n = self.rows["size"]
        return x if n == self.padded else x[..., :n, :n].contiguous()


def _existing(blocks: Tensor | None, batch: int) -> Tensor | None:
    return None if blocks is None else from_16_bytes(blocks.expand(batch).contiguous())


@on_its_device
def triton_balance(
    scores: Tensor, blocks: Tensor | None, iterations: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """As `balance._balance`, the matrix in a dtype."""
    B, H, n, _ = scores.shape
    size, existing = _Sizes(B, H, n, iterations), _existing(blocks, B)
    scores, n = size.wide(scores), size.padded
    out = torch.empty_like(scores, dtype=dtype)
    rows, sums = scores.new_empty(B, H, iterations, n, n), scores.new_empty(B, H, iterations, size.tiles, n)
    if size.by_head:
        run_kernel(balance_head, size.heads, size.launch, scores, rows, sums, out, existing, **size.head)
        return size.narrow(out), rows, sums
    for k in range(iterations):
        tensors = (scores, rows, sums, existing)
        run_kernel(balance_rows, size.programs, WARP, *tensors, **size.rows, k=k)
        run_kernel(balance_columns, size.column_programs, WARP, sums, **size.columns, iterations=iterations, k=k)
    run_kernel(balance_end, size.programs, WARP, rows, sums, out, existing, **size.rows, k=iterations - 1)
    return size.narrow(out), rows, sums


@on_its_device
def triton_balance_backward(dout: Tensor, blocks: Tensor | None, rows: Tensor, sums: Tensor) -> Tensor:
    """Gradient of the scores."""
    (B, H, n, _), iterations = dout.shape, rows.shape[2]
    size, existing = _Sizes(B, H, n, iterations), _existing(blocks, B)
    dout = size.wide(dout)
    dscores = torch.empty_like(dout, dtype=torch.float32)
    if size.by_head:
        z = rows.new_empty(B, H, iterations, size.padded)
        run_kernel(balance_head_back, size.heads, size.launch, dout, rows, sums, z, dscores, existing, **size.head)
        return size.narrow(dscores)
    dout, gradient = dout.float(), torch.empty_like(dscores)
    maps = [dout.new_empty(B, H, 2, size.tiles, size.padded) for _ in range(2)]
    last = iterations - 1
    run_kernel(balance_back_end, size.programs, WARP, dout, rows, sums, gradient, maps[last % 2], existing, **size.rows, k=last)
    for k in range(last, -1, -1):
        run_kernel(balance_back_columns, size.column_programs, WARP, maps[k % 2], **size.columns)
        tensors = (rows, sums, gradient, maps[k % 2], maps[(k + 1) % 2], dscores, existing)
        run_kernel(balance_back, size.programs, WARP, *tensors, **size.rows, k=k)
    return size.narrow(dscores)
