"""The mean of each block in one kernel. Triton is imported here: import this file lazily.

Legend: BR tokens added up at a time, BD the head width D rounded up to a power of two, SIZE tokens a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import end_of
from longspan_kernels.launch.launcher import SMALL, alignment, as_contiguous, on_its_device, readable, run_kernel, width_of

MOST_ROWS = 128


@triton.jit(do_not_specialize=["length", "heads", "blocks", "x_b", "x_h"])
def average_blocks(
    X,
    LENGTHS,
    OUT,
    x_b: tl.int64,
    x_h: tl.int64,
    x_t: tl.int64,
    length: tl.int32,
    heads: tl.int32,
    blocks: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
    SIZE: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """The mean of the tokens of one block, X [B, H, T, D] to OUT [B, H, nb, D]."""
    pid = tl.program_id(0)
    head, block = pid // blocks, pid % blocks
    b = head // heads
    tokens = length
    if LENGTHS is not None:
        tokens = end_of(LENGTHS, b, length)
    offs_d = tl.arange(0, BD)
    X += tl.multiple_of(b.to(tl.int64) * x_b + (head % heads).to(tl.int64) * x_h, ALIGN)
    end = tl.minimum(block * SIZE + SIZE, tokens)
    total = tl.zeros([BD], tl.float32)
    for start in tl.range(block * SIZE, end, BR):
        row = start + tl.arange(0, BR)
        at = X + row.to(tl.int64)[:, None] * x_t + offs_d[None, :]
        x = tl.load(at, mask=(row < end)[:, None] & (offs_d < D)[None, :], other=0.0)
        total += tl.sum(x.to(tl.float32), 0)
    filled = tl.maximum(end - block * SIZE, 1)
    tl.store(OUT + pid.to(tl.int64) * D + offs_d, total / filled.to(tl.float32), mask=offs_d < D)


@on_its_device
def triton_block_means(x: Tensor, lengths: Tensor | None, block_size: int) -> Tensor:
    """As `means.block_means`, of float32 or narrower."""
    x = readable(x)
    B, H, T, D = x.shape
    blocks = -(-T // block_size)
    out = torch.empty((B, H, blocks, D), dtype=torch.float32, device=x.device)
    x_b, x_h, x_t, _ = x.stride()
    sizes = {"x_b": x_b, "x_h": x_h, "x_t": x_t, "length": T, "heads": H, "blocks": blocks}
    rows = min(MOST_ROWS, 1 << (block_size - 1).bit_length())
    numbers = {**sizes, "D": D, "BD": width_of(D), "BR": rows, "SIZE": block_size, "ALIGN": alignment(D, x)}
    run_kernel(average_blocks, B * H * blocks, SMALL, x, as_contiguous(lengths), out, **numbers)
    return out
