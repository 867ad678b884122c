"""Linear attention as torch custom ops: choice of backend, autograd, fake tensors, autocast.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D width of q and k, Dv width of v.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import active_transform
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import cast_as_products, op, output_like, refuse_second_gradients, without_autocast
from longspan_kernels.linear import chunked
from longspan_kernels.linear.arguments import check, check_tensors, moved, runs_of
from longspan_kernels.linear.backends import choose_backend, for_transform
from longspan_kernels.linear.reference import reference_linear_attention


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    causal: bool = True,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    scale: float = 1.0,
    lengths: Tensor | None = None,
    segments: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear attention with a scalar decay a head and token, in O(T) time and memory.

    out_i = scale * sum_{j <= i} exp(sum_{j < l <= i} log_decay_l) (q_i . k_j) v_j, by the state
    S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T: the linear transformer (2006.16236) without decay, retention (2307.08621) with a
    fixed one, Mamba-2 (2405.21060) and simple gated linear attention with one from each token. No normaliser, no feature map.

    Args:
        q: [B, H, T, D], any strides; D from 16 to 256.
        k, v: [B, Hkv, T, D] and [B, Hkv, T, Dv]; Hkv divides H; Dv from 16 to 256.
        log_decay: [B, H, T] or [H], 0 or less; below -100 the past is forgotten. Causal only.
        causal: only keys at or before the query. Both ways there is no decay and no state.
        initial_state: [B, H, D, Dv], what the tokens before these have left; it belongs to the first token's segment.
        return_state: also return the state [B, H, D, Dv] after the last token, float32 (float64 for float64 inputs).
        scale: of the output.
        lengths: [B] int: tokens from there on do not exist; their outputs are 0 and the state stays. Taken as 0 below and as T
            above.
        segments: [B, T] int: packed documents; the state begins anew wherever the number changes.
        backend: "auto", "triton", "chunked" (plain torch), "reference" (token by token) or "fla" (flash-linear-attention).

    Raises:
        KernelError: an argument that cannot work.
        BackendError: the backend cannot serve the call.
    """
    check_tensors(q=q, k=k, v=v, log_decay=log_decay, initial_state=initial_state, lengths=lengths, segments=segments)
    q, k, v = cast_as_products(q, k, v)
    lengths, segments = moved(lengths, q), moved(segments, q)
    check(q, k, v, log_decay, initial_state, scale, lengths, segments)
    if not causal:
        if log_decay is not None or initial_state is not None or return_state:
            raise KernelError("causal=False takes no log_decay, initial_state or return_state: order does not count")
        return _both_ways(q, k, v, float(scale), lengths, segments, backend)
    special = segments is not None or lengths is not None
    backend = for_transform(backend, active_transform(q, k, v, log_decay, initial_state))
    backend = choose_backend(backend, q, special=special, decays=log_decay is not None)
    if backend == "reference":
        rest = {"log_decay": log_decay, "initial_state": initial_state}
        out, state = by_definition(q, k, v, rest, scale=scale, lengths=lengths, segments=segments)
        return (out, state) if return_state else out
    exact = torch.promote_types(q.dtype, torch.float32)
    if log_decay is not None:
        log_decay = log_decay.to(exact)
        log_decay = log_decay if log_decay.dim() == 3 else log_decay[:, None].expand(q.shape[:3])
    if backend == "fla":
        from longspan_kernels.linear.fla import fla_linear_attention

        out, state = fla_linear_attention(q, k, v, log_decay, initial_state, float(scale))
        return (out, state) if return_state else out
    out, state, _ = linear_attention_forward(
        q, k, v, log_decay, runs_of(segments, lengths), lengths, initial_state, float(scale), return_state, backend
    )
    return (out, state) if return_state else out


def by_definition(q: Tensor, k: Tensor, v: Tensor, rest: dict[str, Tensor | None], **call: Any) -> tuple[Tensor, Tensor]:
    """The reference in float32 or wider, as every backend holds its state; `rest` are the tensors beside q, k and v."""
    exact = torch.promote_types(q.dtype, torch.float32)
    wide: dict[str, Any] = {name: None if x is None else x.to(exact) for name, x in rest.items()}
    with without_autocast(q):
        out, state = reference_linear_attention(q.to(exact), k.to(exact), v.to(exact), **wide, **call)
    return out.to(q.dtype), state


def _both_ways(q, k, v, scale: float, lengths, segments, backend: str) -> Tensor:
    """All keys of a query's segment: those up to it, and by a second pass from the end those after it."""
    if segments is None or not q.shape[2]:
        choose_backend(backend, q, special=lengths is not None, decays=False)
        return _sum_of_all(q, k, v, scale, lengths)
    call: dict[str, Any] = {"scale": scale, "backend": backend, "return_state": True}
    out, _ = linear_attention(q, k, v, lengths=lengths, segments=segments, **call)
    if lengths is not None:
        k, v = (_without_padding(x, lengths) for x in (k, v))
        q = _without_padding(q, lengths)
    follows = torch.nn.functional.pad(segments[:, 1:] == segments[:, :-1], (0, 1))[:, None, :, None]  # the next token
    later_k, later_v = (torch.nn.functional.pad(x[:, :, 1:], (0, 0, 0, 1)) for x in (k, v))
    later_k = later_k.masked_fill(~follows, 0.0)
    later, _ = linear_attention(q.flip(2), later_k.flip(2), later_v.flip(2), segments=segments.flip(1), **call)
    return out + later.flip(2)


def _sum_of_all(q: Tensor, k: Tensor, v: Tensor, scale: float, lengths: Tensor | None) -> Tensor:
    """out_i = scale * q_i (sum_j k_j v_j^T), the sum held in float32."""
    if lengths is not None:
        q, k, v = (_without_padding(x, lengths) for x in (q, k, v))
    repeat = q.shape[1] // k.shape[1]
    exact = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q):
        parts = k.shape[2] // PART
        whole = parts * PART
        state = k[:, :, whole:].to(exact).transpose(-1, -2) @ v[:, :, whole:].to(exact)  # (B, Hkv, D, Dv)
        if parts:
            cut_k, cut_v = (x[:, :, :whole].unflatten(2, (parts, PART)) for x in (k, v))
            state = state + (cut_k.transpose(-1, -2) @ cut_v).to(exact).sum(2)
        top = state.detach().abs().amax((-1, -2), keepdim=True).clamp(min=1.0)  # float16 ends at 65504
        out = q.unflatten(1, (-1, repeat)) @ (state / top).to(q.dtype)[:, :, None]
        return (out * (scale * top)[:, :, None].to(exact)).to(q.dtype).flatten(1, 2)


PART = 1024  # tokens whose products are summed in one matrix product


def _without_padding(x: Tensor, lengths: Tensor) -> Tensor:
    beyond = torch.arange(x.shape[2], device=x.device) >= lengths[:, None]
    return x.masked_fill(beyond[:, None, :, None], 0.0)


@op("linear_attention_forward")
def linear_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    wants_state: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, the last state (empty unless wanted) and what the backward pass takes from here."""
    exact = torch.promote_types(q.dtype, torch.float32)
    nothing = q.new_zeros(0, dtype=exact)
    if not q.numel():
        state = state_like(q, v).zero_() if initial_state is None else initial_state.to(exact, copy=True)
        return q.new_zeros(out_shape(q, v)), state if wants_state else nothing, nothing.clone()
    if backend == "triton":
        from longspan_kernels.linear.triton.launches import triton_forward

        out, last, states = triton_forward(q, k, v, log_decay, runs, lengths, initial_state, scale, wants_state)
        return out, nothing if last is None else last, nothing.clone() if states is None else states
    with without_autocast(q):
        out, state = chunked.forward(q, k, v, log_decay, runs, lengths, initial_state, scale)
    return out, state if wants_state else nothing, nothing.clone()


@op("linear_attention_backward")
def linear_attention_backward(
    dout: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    states: Tensor,
    scale: float,
    wants_decay: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, and d log_decay and d initial_state, empty where not wanted."""
    exact = torch.promote_types(q.dtype, torch.float32)
    nothing = q.new_zeros(0, dtype=exact)
    dg: Tensor | None = None
    first: Tensor | None = None
    if not q.numel():
        if initial_state is not None:
            first = state_like(q, v).zero_() if dstate is None else dstate.to(exact, copy=True)
        if log_decay is not None and wants_decay:
            dg = q.new_zeros(q.shape[:3], dtype=exact)
        dq, dk, dv = (output_like(x).zero_() for x in (q, k, v))
    elif backend == "triton":
        from longspan_kernels.linear.triton.launches import triton_backward

        dq, dk, dv, dg, first = triton_backward(
            dout,
            dstate,
            q,
            k,
            v,
            log_decay,
            runs,
            lengths,
            initial_state,
            states if states.numel() else None,
            scale,
            wants_decay,
        )
    else:
        with without_autocast(q):
            dq, dk, dv, dg, first = chunked.backward(
                dout, dstate, q, k, v, log_decay, runs, lengths, initial_state, scale, wants_decay
            )
    keeps = initial_state is not None and first is not None
    return dq, dk, dv, nothing if dg is None else dg, first if keeps and first is not None else nothing.clone()


def out_shape(q: Tensor, v: Tensor) -> tuple:
    return (*q.shape[:3], v.shape[-1])


def state_like(q: Tensor, v: Tensor) -> Tensor:
    shape = (*q.shape[:2], q.shape[-1], v.shape[-1])
    return torch.empty(shape, dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)


@linear_attention_forward.register_fake
def _(q, k, v, log_decay, runs, lengths, initial_state, scale, wants_state, backend):
    exact = torch.promote_types(q.dtype, torch.float32)
    state = state_like(q, v) if wants_state else q.new_empty(0, dtype=exact)
    # How many states the backward pass takes is known to the kernels alone.
    count = torch.library.get_ctx().new_dynamic_size() if backend == "triton" else 0
    return q.new_empty(out_shape(q, v)), state, q.new_empty(count, dtype=exact)


@linear_attention_backward.register_fake
def _(dout, dstate, q, k, v, log_decay, runs, lengths, initial_state, states, scale, wants_decay, backend):
    exact = torch.promote_types(q.dtype, torch.float32)
    dg = q.new_empty(q.shape[:3] if log_decay is not None and wants_decay else 0, dtype=exact)
    first = q.new_empty(0, dtype=exact) if initial_state is None else state_like(q, v)
    return output_like(q), output_like(k), output_like(v), dg, first


def _save(ctx, inputs, output):
    q, k, v, log_decay, runs, lengths, initial_state, scale, _, backend = inputs
    ctx.save_for_backward(q, k, v, log_decay, runs, lengths, initial_state, output[2])
    ctx.scale, ctx.backend = scale, backend
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dstate, _):
    refuse_second_gradients("linear attention has", "reference")
    q, k, v, log_decay, runs, lengths, initial_state, states = ctx.saved_tensors
    if dout is None:
        dout = q.new_zeros(out_shape(q, v))
    if dstate is not None and not dstate.numel():
        dstate = None
    wants_decay = log_decay is not None and ctx.needs_input_grad[3]
    dq, dk, dv, dg, first = linear_attention_backward(
        dout, dstate, q, k, v, log_decay, runs, lengths, initial_state, states, ctx.scale, wants_decay, ctx.backend
    )
    dstart = None if initial_state is None else first.to(initial_state.dtype)
    return dq, dk, dv, dg if wants_decay else None, None, None, dstart, None, None, None


linear_attention_forward.register_autograd(_backward, setup_context=_save)


COUNTED_CHUNK = 64  # tokens, as FLOPs are counted


def forward_flops(q_shape, v_shape) -> int:
    """A token writes to the state and reads it; chunks, of one length whatever a backend takes, add products within them."""
    (B, H, T, D), Dv = q_shape, v_shape[3]
    return int(B * H * T * (4 * D * Dv + 2 * min(COUNTED_CHUNK, T) * (D + Dv)))


@register_flop_formula(torch.ops.longspan.linear_attention_forward)
def _(q_shape, k_shape, v_shape, *rest, out_shape=None, **kwargs) -> int:
    return forward_flops(q_shape, v_shape)


@register_flop_formula(torch.ops.longspan.linear_attention_backward)
def _(dout_shape, dstate_shape, q_shape, k_shape, v_shape, *rest, out_shape=None, **kwargs) -> int:
    return 2 * forward_flops(q_shape, v_shape)
