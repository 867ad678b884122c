"""Overlapping blocks of tokens, each compressed to one: the coarse view of native sparse attention.

Legend: B batch, Hkv key/value heads, T tokens, D head width, l tokens a compressed block, d tokens from one to the next,
nc compressed blocks, nb selection blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def compressed_count(length: int, block: int, stride: int) -> int:
    """nc: the blocks that lie wholly inside `length` tokens."""
    return max(0, (length - block) // stride + 1)


class BlockCompression(nn.Module):
    """[B, Hkv, T, D] -> [B, Hkv, nc, D]: an MLP over the tokens of a block, each with what its place in the block adds.

    All key/value heads share it. It starts near the mean: the MLP is added to the mean of the block, with a small weight.

    Args:
        block, stride: l and d.
        head_dim: D, also the width inside the MLP.
        learned: False for the plain mean.
    """

    def __init__(self, block: int, stride: int, head_dim: int, learned: bool) -> None:
        super().__init__()
        self.block, self.stride, self.head_dim, self.learned = block, stride, head_dim, learned
        if learned:
            self.places = nn.Parameter(torch.randn(block, head_dim) * 0.02)
            self.enter = nn.Linear(block * head_dim, head_dim)
            self.leave = nn.Linear(head_dim, head_dim)
            nn.init.normal_(self.leave.weight, std=0.1 * head_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unfold(2, self.block, self.stride)  # (B, Hkv, nc, D, l)
        mean = blocks.mean(-1)
        if not self.learned:
            return mean
        tokens = blocks.transpose(3, 4) + self.places.to(x.dtype)  # (B, Hkv, nc, l, D)
        return mean + _linear(self.leave, nn.functional.gelu(_linear(self.enter, tokens.flatten(3))))

    def flops(self, length: int) -> int:
        """Matmul FLOPs of one key/value head."""
        D = self.head_dim
        return compressed_count(length, self.block, self.stride) * 2 * (self.block + 1) * D * D if self.learned else 0


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A layer whose weights may be more precise than its input."""
    return nn.functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def overlaps(compressed: int, blocks: int, block: int, stride: int, size: int, device: torch.device) -> Tensor:
    """[nc, nb] float32: strides that a compressed block shares with a selection block of `size` tokens (eq. 9)."""
    first = torch.arange(compressed, device=device)[:, None] * stride
    start = torch.arange(blocks, device=device) * size
    shared = torch.minimum(first + block, start + size) - torch.maximum(first, start)
    return shared.clamp(min=0).float() / stride
