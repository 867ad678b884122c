"""Dense attention by a boolean mask: the definition that every fast path is compared with.

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width. O(Tq * Tk) memory, any dtype and device;
differentiable by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.dropout import keep


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float | None = None,
    q_lengths: Tensor | None = None, k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None, k_segments: Tensor | None = None,
    dropout_p: float = 0.0, seed: Tensor | None = None, bias: Tensor | None = None, bias_block: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q [B, H, Tq, D], k and v [B, Hkv, Tk, D], mask [H or 1, Tq, Tk] bool -> out [B, H, Tq, D], lse [B, H, Tq].

    A query without a key gives output 0 and lse -inf. `bias` [H or 1, query blocks, key blocks] is added to the scores.
    """
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    repeat = H // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    i = torch.arange(Tq, device=q.device) + (Tk - Tq)
    j = torch.arange(Tk, device=q.device)
    live = mask.to(q.device)[None]  # (1, H, Tq, Tk)
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
