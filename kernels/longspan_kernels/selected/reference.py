"""Attention of each query to the key blocks that it picked, dense: the definition that every fast path is compared with.

Legend: B batch, H heads, Hkv key/value heads, P heads that pick for themselves (P divides H, Hkv divides P), T tokens, D head
width, n picks a query. O(T * T) memory, any dtype and device; differentiable by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.reference import keep


def live_pairs(
    picks: Tensor, block_size: int, heads: int, *, causal: bool, lengths: Tensor | None, segments: Tensor | None
) -> Tensor:
    """picks [B, P, T, n], distinct for a query, -1 for none -> [B, H, T, T] bool: which keys each query attends to."""
    B, P, T, _ = picks.shape
    blocks = -(-T // block_size)
    # not in place: under vmap the picks have a dimension that fresh zeros lack
    chosen = torch.zeros((B, P, T, blocks + 1), dtype=torch.bool, device=picks.device)
    chosen = chosen.scatter(3, torch.where((picks < 0) | (picks >= blocks), blocks, picks).long(), True)
    live = chosen[..., :blocks].repeat_interleave(block_size, 3)[..., :T].repeat_interleave(heads // P, 1)
    at = torch.arange(T, device=picks.device)
    if causal:
        live = live & (at <= at[:, None])
    if lengths is not None:
        exists = at < lengths[:, None]  # (B, T)
        live = live & exists[:, None, :, None] & exists[:, None, None, :]
    if segments is not None:
        live = live & (segments[:, None, :, None] == segments[:, None, None, :])
    return live


def selected_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    picks: Tensor,
    block_size: int,
    *,
    causal: bool = False,
    lengths: Tensor | None = None,
    segments: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, H, T, D], k and v [B, Hkv, T, D] -> out [B, H, T, D], lse [B, H, T]; 0 and -inf where a query has no key."""
    B, H, T, D = q.shape
    live = live_pairs(picks, block_size, H, causal=causal, lengths=lengths, segments=segments)
    if lengths is not None:  # what lies beyond may be NaN
        beyond = (torch.arange(T, device=q.device) >= lengths[:, None])[:, None, :, None]
        q, k, v = (x.masked_fill(beyond, 0.0) for x in (q, k, v))
    k, v = (x.repeat_interleave(H // k.shape[1], 1) for x in (k, v))
    dead = ~live.any(-1, keepdim=True)
    scores = (q @ k.transpose(2, 3) * (D**-0.5 if scale is None else scale)).masked_fill(~live, float("-inf"))
    lse = torch.logsumexp(scores.masked_fill(dead, 0.0), -1)
    weights = torch.exp(scores - lse[..., None]).masked_fill(dead, 0.0)
    if dropout_p > 0.0 and seed is not None:
        heads, at = torch.arange(B * H, device=q.device).view(B, H, 1, 1), torch.arange(T, device=q.device)
        weights = weights * keep(seed, heads, at[:, None], at, dropout_p) / (1.0 - dropout_p)
    return weights @ v, lse.masked_fill(dead[..., 0], float("-inf"))
