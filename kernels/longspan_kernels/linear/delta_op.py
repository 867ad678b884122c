"""The gated delta rule as torch custom ops: choice of backend, autograd, fake tensors, autocast.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D width of q and k, Dv width of v.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import active_transform
from longspan_kernels.launch.ops import cast_as_products, op, output_like, refuse_second_gradients, without_autocast
from longspan_kernels.linear import delta_chunked
from longspan_kernels.linear.arguments import check, check_tensors, moved, runs_of, stored_dtype
from longspan_kernels.linear.backends import choose_backend, delta_refuses, for_transform
from longspan_kernels.linear.op import COUNTED_CHUNK, by_definition, forward_flops, out_shape, state_like


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    scale: float = 1.0,
    lengths: Tensor | None = None,
    segments: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The gated delta rule (2412.06464), causal, in O(T): linear attention that overwrites what a key held before.

    S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, out_t = scale * S_t^T q_t, a_t = exp(log_decay_t). Without
    log_decay it is DeltaNet (2406.06484). Keys are taken as they are: give them unit length, or the state can grow.

    Args:
        q: [B, H, T, D], any strides; D from 16 to 256.
        k, v: [B, Hkv, T, D] and [B, Hkv, T, Dv]; Hkv divides H; Dv from 16 to 256.
        beta: [B, H, T], how much of the old value gives way, 0 to 1.
        log_decay: [B, H, T] or [H], 0 or less; or None.
        initial_state, return_state, scale, lengths, segments: as `linear_attention` takes them.
        backend: as `linear_attention` takes it.

    Raises:
        KernelError: an argument that cannot work.
        BackendError: the backend cannot serve the call.
    """
    check_tensors(
        q=q, k=k, v=v, beta=beta, log_decay=log_decay, initial_state=initial_state, lengths=lengths, segments=segments
    )
    q, k, v = cast_as_products(q, k, v)
    lengths, segments = moved(lengths, q), moved(segments, q)
    check(q, k, v, log_decay, initial_state, scale, lengths, segments, beta)
    backend = for_transform(backend, active_transform(q, k, v, beta, log_decay, initial_state))
    special = segments is not None or lengths is not None
    backend = choose_backend(backend, q, special=special, decays=True, refused=delta_refuses(q, v))
    exact = torch.promote_types(q.dtype, torch.float32)
    if backend == "reference":
        rest = {"log_decay": log_decay, "beta": beta, "initial_state": initial_state}
        out, state = by_definition(q, k, v, rest, scale=scale, lengths=lengths, segments=segments)
        return (out, state) if return_state else out
    if log_decay is not None:
        log_decay = log_decay.to(exact)
        log_decay = log_decay if log_decay.dim() == 3 else log_decay[:, None].expand(q.shape[:3])
    beta = beta.to(exact)
    if backend == "fla":
        from longspan_kernels.linear.fla import fla_gated_delta_rule

        out, state = fla_gated_delta_rule(q, k, v, beta, log_decay, initial_state, float(scale))
        return (out, state) if return_state else out
    out, state, _ = gated_delta_forward(
        q, k, v, beta, log_decay, runs_of(segments, lengths), lengths, initial_state, float(scale), backend
    )
    return (out, state) if return_state else out


@op("gated_delta_forward")
def gated_delta_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, the last state, and what the Triton kernels' backward pass takes from here."""
    nothing = q.new_empty(0, dtype=stored_dtype(q))
    if not q.numel():
        state = state_like(q, v).zero_() if initial_state is None else initial_state.to(state_like(q, v).dtype, copy=True)
        return q.new_zeros(out_shape(q, v)), state, nothing
    if backend == "triton":
        from longspan_kernels.linear.triton.delta_launches import triton_delta_forward

        return triton_delta_forward(q, k, v, beta, log_decay, runs, lengths, initial_state, scale)
    with without_autocast(q):
        return *delta_chunked.forward(q, k, v, beta, log_decay, runs, lengths, initial_state, scale), nothing


@op("gated_delta_backward")
def gated_delta_backward(
    dout: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    inverse: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, d beta, d log_decay (also where there is none) and d initial_state (likewise)."""
    if not q.numel():
        first = state_like(q, v).zero_() if dstate is None else dstate.to(state_like(q, v).dtype, copy=True)
        zero = torch.zeros_like(beta, memory_format=torch.contiguous_format)
        return output_like(q).zero_(), output_like(k).zero_(), output_like(v).zero_(), zero, zero.clone(), first
    if backend == "triton":
        from longspan_kernels.linear.triton.delta_launches import triton_delta_backward

        return triton_delta_backward(dout, dstate, q, k, v, beta, log_decay, runs, lengths, initial_state, inverse, scale)
    with without_autocast(q):
        return delta_chunked.backward(dout, dstate, q, k, v, beta, log_decay, runs, lengths, initial_state, scale)


@gated_delta_forward.register_fake
def _(q, k, v, beta, log_decay, runs, lengths, initial_state, scale, backend):
    # How long the kernels' chunks are is known to them alone.
    count = torch.library.get_ctx().new_dynamic_size() if backend == "triton" else 0
    inverse = q.new_empty(count, dtype=stored_dtype(q))
    return q.new_empty(out_shape(q, v)), state_like(q, v), inverse


@gated_delta_backward.register_fake
def _(dout, dstate, q, k, v, beta, log_decay, runs, lengths, initial_state, inverse, scale, backend):
    return output_like(q), output_like(k), output_like(v), output_like(beta), output_like(beta), state_like(q, v)


def _save(ctx, inputs, output):
    q, k, v, beta, log_decay, runs, lengths, initial_state, scale, backend = inputs
    ctx.save_for_backward(q, k, v, beta, log_decay, runs, lengths, initial_state, output[2])
    ctx.scale, ctx.backend = scale, backend
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dstate, _):
    refuse_second_gradients("the gated delta rule has", "reference")
    q, k, v, beta, log_decay, runs, lengths, initial_state, inverse = ctx.saved_tensors
    if dout is None:
        dout = q.new_zeros(out_shape(q, v))
    dq, dk, dv, dbeta, dg, first = gated_delta_backward(
        dout, dstate, q, k, v, beta, log_decay, runs, lengths, initial_state, inverse, ctx.scale, ctx.backend
    )
    dg = None if log_decay is None else dg
    dstart = None if initial_state is None else first.to(initial_state.dtype)
    return dq, dk, dv, dbeta, dg, None, None, dstart, None, None


gated_delta_forward.register_autograd(_backward, setup_context=_save)


def delta_flops(q_shape, v_shape) -> int:
    """Besides: a key reads the state before it writes; the products of a chunk's keys, a triangular inverse, and what it is
    multiplied with."""
    (B, H, T, D), Dv = q_shape, v_shape[3]
    chunk = min(COUNTED_CHUNK, T)
    more = 2 * D * Dv + 2 * chunk * (2 * D + Dv) + 2 * chunk * chunk // 3
    return forward_flops(q_shape, v_shape) + int(B * H * T * more)


@register_flop_formula(torch.ops.longspan.gated_delta_forward)
def _(q_shape, k_shape, v_shape, *rest, out_shape=None, **kwargs) -> int:
    return delta_flops(q_shape, v_shape)


@register_flop_formula(torch.ops.longspan.gated_delta_backward)
def _(dout_shape, dstate_shape, q_shape, k_shape, v_shape, *rest, out_shape=None, **kwargs) -> int:
    return 2 * delta_flops(q_shape, v_shape)
