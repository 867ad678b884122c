"""Bucketed attention, dense: the definition that the kernels are compared with.

Legend: B batch, H heads, R rounds, T tokens, D head width. O(R T T) memory, any dtype and device; differentiable by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.reference import keep
from longspan_kernels.bucketed.options import Buckets


def chunk_numbers(bucket: Tensor, size: int, aligned: bool) -> Tensor:
    """[..., T] which chunk each token stands in, among those of its bucket or (not aligned) of the whole order."""
    exists = bucket >= 0
    same = (bucket[..., :, None] == bucket[..., None, :]) & exists[..., None, :]
    earlier = torch.ones(bucket.shape[-1], bucket.shape[-1], dtype=torch.bool, device=bucket.device).tril(-1)
    rank = (same & earlier).sum(-1)
    if not aligned:
        rank = rank + ((bucket[..., None, :] < bucket[..., :, None]) & exists[..., None, :]).sum(-1)
    return rank // size


def found_pairs(bucket: Tensor, how: Buckets) -> Tensor:
    """bucket [B, H, R, T], -1 for tokens that do not exist -> [B, H, R, T, T] bool: pairs of each round, each counted once."""
    chunk, T = chunk_numbers(bucket, how.size, how.aligned), bucket.shape[-1]
    behind = chunk[..., :, None] - chunk[..., None, :]
    found = (bucket[..., :, None] == bucket[..., None, :]) & (bucket >= 0)[..., None] & (behind >= 0) & (behind <= 1)
    at = torch.arange(T, device=bucket.device)
    if how.causal:
        found &= at <= at[:, None]
    if not how.itself:
        found &= at != at[:, None]
    return found & (found.int().cumsum(2) == 1)


def bucketed_reference(
    q: Tensor, v: Tensor, bucket: Tensor, how: Buckets, scale: float, *, dropout_p: float = 0.0, seed: Tensor | None = None
) -> Tensor:
    """q, v [B, H, T, D], bucket [B, H, R, T] -> [B, H, T, D]; a token that sees nothing gets its own value, one that does not
    exist 0."""
    (B, H, T, D), R = q.shape, how.rounds
    exists = (bucket[:, :, 0] >= 0)[..., None]
    q, v = (x.masked_fill(~exists, 0.0) for x in (q, v))
    unit = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + D * 1e-6)
    q, k = unit if how.unit_queries else q, unit if how.unit_keys else q
    pairs = found_pairs(bucket, how)
    live = pairs.any(2)
    alone = ~live.any(-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~live, float("-inf")).masked_fill(alone, 0.0)
    weights = torch.softmax(scores, -1)
    if dropout_p > 0.0 and seed is not None:
        row, at = torch.arange(B * H * R, device=q.device).view(B, H, R, 1, 1), torch.arange(T, device=q.device)
        kept = keep(seed, row, at[:, None], at, dropout_p) & pairs
        weights = weights * kept.any(2) / (1.0 - dropout_p)
    return torch.where(alone & exists, v, (weights @ v).masked_fill(alone, 0.0))
