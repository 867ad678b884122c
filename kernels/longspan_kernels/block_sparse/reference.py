"""Dense attention by a boolean mask, and which weights dropout leaves: the definition that every fast path is compared with.

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width. O(Tq * Tk) memory, any dtype and device;
differentiable by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
HEAD, ROW, COLUMN = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    scale: float | None = None,
    q_lengths: Tensor | None = None,
    k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    bias: Tensor | None = None,
    bias_block: int = 0,
) -> tuple[Tensor, Tensor]:
    """q [B, H, Tq, D], k and v [B, Hkv, Tk, D], mask [H or 1, Tq, Tk] bool -> out [B, H, Tq, D], lse [B, H, Tq].

    The mask may be [B, H, Tq, Tk] too. A query without a key gives output 0 and lse -inf. `bias` [H or 1, query blocks, key
    blocks] is added to the scores.
    """
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    repeat = H // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    i = torch.arange(Tq, device=q.device) + (Tk - Tq)
    j = torch.arange(Tk, device=q.device)
    live = mask.to(q.device)  # (B or none, H, Tq, Tk)
    # What lies beyond a length does not exist: it may be NaN, and 0 * NaN is NaN.
    if q_lengths is not None:
        exists = (torch.arange(Tq, device=q.device) < q_lengths[:, None])[:, None, :, None]
        live, q = live & exists, q.masked_fill(~exists, 0.0)
    if k_lengths is not None:
        exists = (j < k_lengths[:, None])[:, None, :, None]
        live, k, v = live & exists.transpose(2, 3), k.masked_fill(~exists, 0.0), v.masked_fill(~exists, 0.0)
    if q_segments is not None and k_segments is not None:
        live = live & (q_segments[:, None, :, None] == k_segments[:, None, None, :])
    scores = q @ k.transpose(-1, -2) * (D**-0.5 if scale is None else scale)  # (B, H, Tq, Tk)
    if bias is not None:
        rows = i // bias_block - (Tk - Tq) // bias_block
        scores = scores + bias[:, rows][:, :, j // bias_block].to(scores.dtype)
    scores = scores.masked_fill(~live, float("-inf"))
    dead = (scores == float("-inf")).all(-1, keepdim=True)  # no key is live, or a bias of -inf closes those that are
    scores = scores.masked_fill(dead, 0.0)
    weights = torch.softmax(scores, -1)
    if dropout_p > 0.0 and seed is not None:
        heads = torch.arange(B * H, device=q.device).view(B, H, 1, 1)
        weights = weights * keep(seed, heads, i[:, None], j[None, :], dropout_p) / (1.0 - dropout_p)
    # The last step, so that whatever gradient comes to a query without keys, NaN included, goes no further.
    return (weights @ v).masked_fill(dead, 0.0), torch.logsumexp(scores, -1).masked_fill(dead[..., 0], float("-inf"))


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit values with good avalanche, on int64 tensors that hold them."""
    x = x & MASK
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def keep(seed: Tensor, batch_head: Tensor, i: Tensor, j: Tensor, p: float) -> Tensor:
    """Which weights survive dropout, which depends on (seed, b, h, i, j) alone: the same under any tiling, order and backend.

    The Triton kernels have the same function once more.

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
