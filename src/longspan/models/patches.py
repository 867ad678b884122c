"""Embeds patches of images: the numbers of a patch, by one matrix, as in ViT (arXiv:2010.11929).

Legend: B batch, T patches, P numbers a patch (its pixels times their channels), C model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 255.0


class PatchEmbedding(nn.Module):
    """[B, T, P] numbers from 0 to 255 to [B, T, C] vectors.

    Args:
        numbers: P.
        width: C.
    """

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(numbers, width) * numbers**-0.5)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, patches: Tensor) -> Tensor:
        scaled = patches.to(self.weight.dtype) * (2.0 / LARGEST) - 1.0  # from -1 to 1
        return scaled @ self.weight + self.bias  # (B, T, C)

    def extra_repr(self) -> str:
        return f"numbers={self.weight.shape[0]}, width={self.weight.shape[1]}"
