"""Clusters of vectors: which centroid each is nearest to, and the sums of what each centroid got. Triton alone.

Legend: B batch, H heads, T tokens, D head width, C centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.launch.ops import op


def nearest_keys(q: Tensor, means: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Keys [B H, T] int32, as `tables.row_keys` makes them, of the centroid whose dot with each vector is largest.

    Args:
        q: [B, H, T, D], any strides.
        means: [H, C, D] float32.
        lengths: [B] int; tokens past it belong to no centroid.
    """
    found: Tensor = _nearest_keys(q.detach(), means, lengths)
    return found


def add_up_buckets(q: Tensor, order: Tensor, start: Tensor, sums: Tensor, counts: Tensor) -> None:
    """Adds to sums [H, C, D] the vectors of each bucket, brought to length sqrt(D), and to counts [H, C] how many there are.

    Every sum has one order, so that two runs give the same bits.

    Args:
        q: [B, H, T, D], any strides.
        order, start: of `bucket_tables`, for one round.
        sums, counts: of one floating dtype, contiguous, changed in place.
    """
    torch.ops.longspan.add_up_buckets(q.detach(), order, start, sums, counts)


@op("nearest_keys")
def _nearest_keys(q: Tensor, means: Tensor, lengths: Tensor | None) -> Tensor:
    from longspan_kernels.bucketed.triton.centroids import triton_nearest_keys

    return triton_nearest_keys(q, means, lengths)


@torch.library.custom_op("longspan::add_up_buckets", mutates_args=("sums", "counts"))
def _add_up_buckets(q: Tensor, order: Tensor, start: Tensor, sums: Tensor, counts: Tensor) -> None:
    from longspan_kernels.bucketed.triton.centroids import triton_add_up_buckets

    triton_add_up_buckets(q, order, start, sums, counts)


@_nearest_keys.register_fake
def _(q, means, lengths):
    B, H, T, _ = q.shape
    return torch.empty((B * H, T), dtype=torch.int32, device=q.device)


@_add_up_buckets.register_fake
def _(q, order, start, sums, counts):
    return None
