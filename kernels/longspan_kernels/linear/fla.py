"""Linear attention by flash-linear-attention, where it is installed: its layout is [B, T, H, D], its autograd its own."""

from __future__ import annotations

from torch import Tensor


def fla_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial_state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """q [B, H, T, D], k and v [B, Hkv, T, ...], log_decay [B, H, T] -> out [B, H, T, Dv], the last state [B, H, D, Dv]."""
    from fla.ops.linear_attn import chunk_linear_attn
    from fla.ops.simple_gla import chunk_simple_gla

    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    call = {"scale": scale, "initial_state": initial_state, "output_final_state": True}
    if log_decay is None:
        out, state = chunk_linear_attn(q, k, v, normalize=False, **call)
    else:
        out, state = chunk_simple_gla(q, k, v, g=log_decay.transpose(1, 2), **call)
    return out.transpose(1, 2), state.float()


def fla_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial_state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """As `fla_linear_attention`, beta [B, H, T]."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    decay = beta.new_zeros(beta.shape) if log_decay is None else log_decay
    q, k, v, beta, decay = (x.transpose(1, 2) for x in (q, k, v, beta, decay))
    out, state = chunk_gated_delta_rule(
        q, k, v, g=decay, beta=beta, scale=scale, initial_state=initial_state, output_final_state=True
    )
    return out.transpose(1, 2), state.float()
