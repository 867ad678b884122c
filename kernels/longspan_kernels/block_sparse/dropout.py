"""Dropout bits from a counter: which weights fall away depends on (seed, b, h, i, j) alone.

The same function is written once more in the Triton kernels. A pair's fate is thus the same under any tiling, token order,
backend and recomputation.
"""

from __future__ import annotations

from torch import Tensor

MASK = 0xFFFFFFFF
HEAD, ROW, COLUMN = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit values with good avalanche, on int64 tensors that hold them."""
    x = x & MASK
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def keep(seed: Tensor, batch_head: Tensor, i: Tensor, j: Tensor, p: float) -> Tensor:
    """Which weights survive.

    Args:
        seed: int64 scalar tensor; its low 32 bits count.
        batch_head: b * H + h, int64, broadcastable with i and j.
        i, j: int64 positions in key coordinates.
        p: chance to fall away.
    """
    head = mix(seed + HEAD * (batch_head + 1))
    row = mix(head ^ ((i * ROW) & MASK))
    bits = mix(row ^ ((j * COLUMN) & MASK))
    return (bits >> 8) >= int(p * (1 << 24))
