"""Locality-sensitive hashing of vectors by direction: random rotations, as in Reformer (arXiv:2001.04451, section 2).

Legend: B batch, H heads, T tokens, D head width, R rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_FACTOR = 6  # bits of a bucket number that one rotation tells


def factors(buckets: int) -> list[int]:
    """A power of two as a product of small ones: hashing to 4096 buckets at once takes 2048 directions, in two steps 64."""
    bits = buckets.bit_length() - 1
    steps = max(1, -(-bits // LARGEST_FACTOR))
    return [1 << (bits // steps + (n < bits % steps)) for n in range(steps)]


def directions(buckets: int) -> int:
    """Random directions that `factors` of the buckets need; each stands for two buckets, its own and the opposite."""
    return sum(factor // 2 for factor in factors(buckets))


def buckets_of(x: Tensor, rotations: Tensor, buckets: int) -> Tensor:
    """x [B, H, T, D], rotations [H, D, R, at least `directions`] -> [B, H, R, T] int64 bucket numbers."""
    out, first, scale = None, 0, 1
    for factor in factors(buckets):
        half = factor // 2
        # (B, H, R, T, half)
        turned = torch.einsum("bhtd,hdrf->bhrtf", x, rotations[..., first : first + half])
        number = torch.cat((turned, -turned), -1).argmax(-1)
        out = number if out is None else out + scale * number
        first, scale = first + half, scale * factor
    assert out is not None
    return out
