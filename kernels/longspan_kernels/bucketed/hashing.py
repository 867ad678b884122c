"""Buckets of vectors by direction, for all rounds in one pass over the vectors (Reformer, arXiv:2001.04451, section 2).

Legend: B batch, H heads, R rounds, T tokens, D head width, F directions a round, C buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan_kernels.launch.ops import op


def hash_keys(q: Tensor, rotations: Tensor, factors: Sequence[int], lengths: Tensor | None = None) -> Tensor:
    """Keys [B H R, T] int32, as `tables.row_keys` makes them, of the buckets that q's directions fall into. Triton alone.

    Args:
        q: [B, H, T, D], any strides.
        rotations: [H, D, R, F] float32; F is half the sum of the factors.
        factors: even numbers whose product is C: each takes its half of directions, and finds which of them or of their
            opposites a vector is nearest to. The first counts ones of the bucket's number, the second as many as the first, ...
        lengths: [B] int; tokens past it are in no bucket.
    """
    found: Tensor = _hash_keys(q.detach(), rotations, list(factors), lengths)
    return found


@op("hash_keys")
def _hash_keys(q: Tensor, rotations: Tensor, factors: list[int], lengths: Tensor | None) -> Tensor:
    from longspan_kernels.bucketed.triton.hashing import triton_hash_keys

    return triton_hash_keys(q, rotations, factors, lengths)


@_hash_keys.register_fake
def _(q, rotations, factors, lengths):
    B, H, T, _ = q.shape
    return torch.empty((B * H * rotations.shape[2], T), dtype=torch.int32, device=q.device)
