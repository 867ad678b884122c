"""Selected attention as torch custom ops: choice of backend, autograd, fake tensors, autocast, FLOP formula.

Legend: B batch, H heads, Hkv key/value heads, P heads that pick for themselves, T tokens, D head width, n picks a query.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import cast_as_products, lse_like, op, output_like, refuse_second_gradients, without_autocast
from longspan_kernels.selected.attend import torch_backward, torch_forward
from longspan_kernels.selected.lists import MOST_ENTRIES, queries_of_blocks
from longspan_kernels.selected.options import SCHEMA, Selection
from longspan_kernels.selected.reference import selected_reference


@overload
def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    picks: Tensor,
    block_size: int,
    *,
    causal: bool = ...,
    lengths: Tensor | None = ...,
    segments: Tensor | None = ...,
    scale: float | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    picks: Tensor,
    block_size: int,
    *,
    causal: bool = ...,
    lengths: Tensor | None = ...,
    segments: Tensor | None = ...,
    scale: float | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def selected_attention(
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
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of each query token to the tokens of the key blocks that it picked.

    Picks get no gradient. Two runs give the same bits: gradients of keys and values are summed in the order of the tokens.

    Args:
        q: [B, H, T, D]; k, v: [B, Hkv, T, D]; any strides.
        picks: [B, P, T, n] whole numbers of key blocks, distinct for a query; -1, or any other that names no block, for none.
            P is H, or a divisor of H that Hkv divides: heads of a group then share their picks.
        block_size: tokens a key block; block c holds those from c * block_size on.
        causal: only keys at or before the query, inside of blocks too.
        lengths: [B] int, tokens of each sequence; what lies at or past it is neither query nor key, and its output is 0.
        segments: [B, T] int; a query sees keys of its own segment alone.
        scale: of the scores; 1 / sqrt(D) unless given.
        dropout_p: share of the weights that fall away.
        return_lse: whether to return the log-sum-exp of the scores too, differentiable.
        backend: "auto", "triton", "blocked" (plain torch) or "dense" (the definition).

    Returns:
        out [B, H, T, D], and lse [B, H, T] in float32 (float64 of float64); 0 and -inf where a query has no key.

    Raises:
        KernelError: shapes that do not fit.
        BackendError: the backend cannot serve the call.
    """
    q, k, v = cast_as_products(q, k, v)
    _check(q, k, v, picks, block_size, lengths, segments)
    backend = choose_backend(backend, q, k, active_transform(q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    seed = torch.randint(0, 1 << 31, (1,), device=q.device) if dropout_p > 0.0 else None
    if backend == "dense":
        exact = torch.promote_types(q.dtype, torch.float32)
        options: dict[str, Any] = {"causal": causal, "lengths": lengths, "segments": segments, "scale": scale}
        options |= {"dropout_p": dropout_p, "seed": seed}
        with without_autocast(q):
            out, lse = selected_reference(q.to(exact), k.to(exact), v.to(exact), picks, block_size, **options)
        return (out.to(q.dtype), lse) if return_lse else out.to(q.dtype)
    picks = picks.detach().to(torch.int32)
    order, start = queries_of_blocks(picks, lengths, -(-q.shape[2] // block_size), backend)
    out, lse = selected_forward(
        q, k, v, picks, order, start, lengths, segments, seed, block_size, causal, scale, float(dropout_p), backend
    )
    return (out, lse) if return_lse else out


def _check(
    q: Tensor, k: Tensor, v: Tensor, picks: Tensor, block_size: int, lengths: Tensor | None, segments: Tensor | None
) -> None:
    B, H, T, D = q.shape
    if k.shape != v.shape or k.shape[0] != B or k.shape[2:] != q.shape[2:]:
        raise KernelError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: selected attention is self-attention; give k and v "
            f"[{B}, key/value heads, {T}, {D}]"
        )
    if picks.dim() != 4 or picks.shape[0] != B or picks.shape[2] != T or H % picks.shape[1] or picks.shape[1] % k.shape[1]:
        raise KernelError(
            f"picks {tuple(picks.shape)} do not fit q {tuple(q.shape)} and k {tuple(k.shape)}; give [{B}, heads that pick, "
            f"{T}, picks a query], of which {k.shape[1]} divides the heads that pick, and these divide {H}"
        )
    if picks.dtype.is_floating_point or picks.dtype == torch.bool:
        raise KernelError(f"picks are {picks.dtype}; give whole numbers, such as torch.int32")
    for name, given, shape in (("lengths", lengths, (B,)), ("segments", segments, (B, T))):
        if given is not None and given.shape != shape:
            raise KernelError(f"{name} has shape {tuple(given.shape)}; give {shape}")
    if block_size < 1:
        raise KernelError(f"block_size = {block_size} leaves no token a block; give 1 or more")
    if picks.numel() >= MOST_ENTRIES:
        raise KernelError(f"{picks.numel():,} picks are more than 32 bits number; give fewer sequences at once")


@op("selected_forward", f"(Tensor q, Tensor k, Tensor v, {SCHEMA}) -> (Tensor, Tensor)")
def selected_forward(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *own, backend = arguments
    chosen = Selection(*own)
    if q.numel() == 0 or chosen.picks.numel() == 0:
        return output_like(q).zero_(), lse_like(q).fill_(float("-inf"))
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
        from longspan_kernels.selected.triton.launches import triton_forward

        if interprets_bfloat16(q):
            out, lse = triton_forward(q.float(), k.float(), v.float(), chosen)
            return out.to(q.dtype), lse
        return triton_forward(q, k, v, chosen)
    with without_autocast(q):
        return torch_forward(q, k, v, chosen)


@op(
    "selected_backward",
    f"(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def selected_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *own, backend = arguments
    chosen = Selection(*own)
    if q.numel() == 0 or chosen.picks.numel() == 0:
        return output_like(q).zero_(), output_like(k).zero_(), output_like(v).zero_()
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
        from longspan_kernels.selected.triton.launches import triton_backward

        if interprets_bfloat16(q):
            grads = triton_backward(dout.float(), dlse, q.float(), k.float(), v.float(), out.float(), lse, chosen)
            return grads[0].to(q.dtype), grads[1].to(q.dtype), grads[2].to(q.dtype)
        return triton_backward(dout, dlse, q, k, v, out, lse, chosen)
    with without_autocast(q):
        return torch_backward(dout, dlse, q, k, v, out, lse, chosen)


@selected_forward.register_fake
def _(q, k, v, *arguments):
    return output_like(q), lse_like(q)


@selected_backward.register_fake
def _(dout, dlse, q, k, v, out, lse, *arguments):
    return output_like(q), output_like(k), output_like(v)


def _save(ctx, inputs, output):
    *tensors, block_size, causal, scale, dropout_p, backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.call = (block_size, causal, scale, dropout_p, backend)
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dlse):
    refuse_second_gradients("selected attention has", "dense")
    q, k, v, *lists, out, lse = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    grads = selected_backward(dout, dlse, q, k, v, out, lse, *lists, *ctx.call)
    return *grads, *(None,) * 11


selected_forward.register_autograd(_backward, setup_context=_save)


def picked_pairs(q_shape, picks_shape, block_size: int) -> int:
    """Pairs that the kernels visit: whole blocks of every pick, over the heads."""
    B, _, T, n = picks_shape
    return B * q_shape[1] * T * n * block_size


@register_flop_formula(torch.ops.longspan.selected_forward)
def forward_flops(q_shape, k_shape, v_shape, picks_shape, *rest, out_shape=None, **kwargs) -> int:
    return 4 * q_shape[3] * picked_pairs(q_shape, picks_shape, rest[5])


@register_flop_formula(torch.ops.longspan.selected_backward)
def backward_flops(
    dout_shape, dlse_shape, q_shape, k_shape, v_shape, out_shape_, lse_shape, picks_shape, *rest, out_shape=None, **kwargs
) -> int:
    return 10 * q_shape[3] * picked_pairs(q_shape, picks_shape, rest[5])
