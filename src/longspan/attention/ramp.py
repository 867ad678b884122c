"""A band of pairs whose weights ramp down with distance: plain torch, O(T * width) for each head.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, C queries of a chunk, W distances of the band.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
MOST_ABOVE = 80.0  # that the score of a key of weight 0 counts above all others, so that its exponential is a number


def ramp_weight(distance: Tensor, span: Tensor, ramp: float) -> Tensor:
    """The soft mask of adaptive spans, clamp((ramp + span - distance) / ramp, 0, 1) (arXiv:1905.07799)."""
    return ((ramp + span - distance) / ramp).clamp(0.0, 1.0)


def banded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Tensor,
    start: int,
    width: int,
    *,
    ramp: float,
    scale: float,
    lengths: Tensor | None = None,
    segments: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention over keys start <= i - j < start + width, each weight times `ramp_weight`.

    Args:
        q: [B, H, T, D].
        k, v: [B, H, T, D].
        span: [H], differentiable.
        lengths: [B]; segments: [B, T], as in `sparse_attention`.

    Returns:
        out [B, H, T, D] and lse [B, H, T], -inf for a query without a key.
    """
    (B, H, T, D), device = q.shape, q.device
    exact = torch.promote_types(q.dtype, torch.float32)
    chunks = -(-T // CHUNK)
    extra = chunks * CHUNK - T
    rows = torch.arange(chunks * CHUNK, device=device).view(chunks, CHUNK)
    # Chunk c sees the keys from its first query's farthest to its last query's nearest.
    columns = rows[:, :1] - (start + width - 1) + torch.arange(width + CHUNK - 1, device=device)  # (chunks, W + C - 1)
    before = start + width - 1

    def side_by_side(x: Tensor) -> Tensor:
        """[B, H, T, D] -> [B, H, chunks, W + C - 1, D], keys outside the sequence being 0."""
        padded = F.pad(x.to(exact), (0, 0, before, extra))
        return padded[:, :, : chunks * CHUNK + width - 1].unfold(2, width + CHUNK - 1, CHUNK).transpose(-1, -2)

    queries = F.pad(q.to(exact), (0, 0, 0, extra)).view(B, H, chunks, CHUNK, D)
    if lengths is not None:
        # What lies beyond a length may be anything, NaN included, and 0 * NaN is NaN.
        beyond = (torch.arange(T, device=device) >= lengths[:, None])[:, None, :, None]
        queries = queries.masked_fill((rows >= lengths[:, None, None])[:, None, ..., None], 0.0)
        k, v = k.masked_fill(beyond, 0.0), v.masked_fill(beyond, 0.0)
    scores = queries @ side_by_side(k).transpose(-1, -2) * scale  # (B, H, chunks, C, W + C - 1)
    distance = rows[:, :, None] - columns[:, None, :]
    live = (distance >= start) & (distance < start + width) & (columns >= 0)[:, None] & (rows < T)[..., None]
    spans = span.to(exact)[:, None, None, None]
    weight = ramp_weight(distance, spans, ramp)  # (H, chunks, C, W + C - 1)
    # A weight of 0 at the very end of the ramp adds nothing, and has a gradient, as clamp gives one at its bounds.
    live = (live & (distance <= spans.detach() + ramp))[None]
    if lengths is not None:
        at = lengths[:, None, None, None, None]
        live = live & (rows[..., None] < at) & (columns[:, None] < at)
    if segments is not None:
        own = F.pad(segments, (0, extra))[:, rows]  # (B, chunks, C)
        seen = segments[:, columns.clamp(0, T - 1)]  # (B, chunks, W + C - 1)
        live = live & (own[..., None] == seen[:, :, None])[:, None]
    most = scores.detach().masked_fill(~(live & (weight > 0)), float("-inf")).amax(-1, keepdim=True)
    nothing = most == float("-inf")
    most = most.masked_fill(nothing, 0.0)
    p = weight * (scores - most).masked_fill(~live, float("-inf")).clamp(max=MOST_ABOVE).exp()
    total = p.sum(-1, keepdim=True).masked_fill(nothing, 1.0)
    p = (p / total).masked_fill(nothing, 0.0)
    out = F.dropout(p, dropout_p) @ side_by_side(v) if dropout_p else p @ side_by_side(v)
    lse = (total.log() + most).masked_fill(nothing, float("-inf"))
    return out.view(B, H, -1, D)[:, :, :T].to(q.dtype), lse.view(B, H, -1)[:, :, :T]
