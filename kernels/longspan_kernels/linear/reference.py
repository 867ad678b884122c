"""Linear attention and the gated delta rule, one token at a time: the definitions that every fast path is compared with.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D width of q and k, Dv width of v, S the state [B, H, D, Dv].
Any dtype and device; differentiable by autograd; O(T) steps, each slow.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    causal: bool = True,
    initial_state: Tensor | None = None,
    scale: float = 1.0,
    lengths: Tensor | None = None,
    segments: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, H, T, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv] -> out [B, H, T, Dv] and the last state [B, H, D, Dv].

    S_t = a_t S_{t-1} + k_t w_t^T, out_t = scale * S_t^T q_t, a_t = exp(log_decay_t), and w_t = v_t; with `beta` [B, H, T]
    the gated delta rule (2412.06464): w_t = beta_t (v_t - a_t S_{t-1}^T k_t). Both ways, each token reads its segment's sum.
    """
    B, H, T, D = q.shape
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    state = q.new_zeros(B, H, D, v.shape[-1]) if initial_state is None else initial_state.to(q.dtype)
    decay = q.new_ones(B, H, T) if log_decay is None else (log_decay[:, None] if log_decay.dim() == 1 else log_decay).exp()
    decay = decay.to(q.dtype).expand(B, H, T)
    exists = torch.ones(B, T, dtype=torch.bool, device=q.device)
    if lengths is not None:
        exists = torch.arange(T, device=q.device) < lengths[:, None]
    same = torch.ones_like(exists)  # whether a token belongs to the segment of the token before
    if segments is not None:
        same[:, 1:] = segments[:, 1:] == segments[:, :-1]
    out, states = [], []
    for t in range(T):
        here, carried = exists[:, t, None, None, None], (exists & same)[:, t, None, None, None]
        # What lies beyond a length may be NaN, and 0 * NaN is NaN.
        q_t, k_t, v_t = (x[:, :, t, :, None].masked_fill(~here, 0.0) for x in (q, k, v))  # (B, H, D or Dv, 1)
        old = torch.where(carried | ~here, state, 0.0) * torch.where(here, decay[:, :, t, None, None], 1.0)
        if beta is not None:
            v_t = beta[:, :, t, None, None].to(q.dtype).masked_fill(~here, 0.0) * (v_t - old.transpose(-1, -2) @ k_t)
        state = old + k_t @ v_t.transpose(-1, -2)
        states.append(state)
        out.append(scale * (state.transpose(-1, -2) @ q_t)[..., 0])
    if not causal:  # each token reads the state at the end of its segment
        for t in reversed(range(T - 1)):
            ends = ~(same & exists)[:, t + 1, None, None, None]
            states[t] = torch.where(ends, states[t], states[t + 1])
            q_t = q[:, :, t, :, None].masked_fill(~exists[:, t, None, None, None], 0.0)
            out[t] = scale * (states[t].transpose(-1, -2) @ q_t)[..., 0]
    return (torch.stack(out, 2) if T else v.new_zeros(B, H, 0, v.shape[-1])), state
