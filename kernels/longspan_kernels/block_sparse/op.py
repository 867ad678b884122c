"""Block-sparse attention as torch custom ops: autograd, fake tensors, FLOP formulas.

The ops take a pattern's key and find its layout inside, so that torch.compile sees one opaque call and never specialises on
a length; blocks that are listed at run time come as tensors, so that a compiled graph carries them along. Legend: B batch,
H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse import cudnn, flash, fused
from longspan_kernels.block_sparse.args import BIAS, SCHEMA, TENSORS, Options, Source, packed, unpacked
from longspan_kernels.block_sparse.backends import (
    CPU,
    DENSE_LIMIT,
    active_transform,
    choose_backend,
    chosen,
    layouts_for,
    shape_of,
)
from longspan_kernels.block_sparse.blocked_passes import blocked_backward, blocked_forward
from longspan_kernels.block_sparse.cache import counted_pairs, dense_mask, every_query_sees_itself, state_of
from longspan_kernels.block_sparse.layout import DeviceLayout, Layout
from longspan_kernels.block_sparse.reference import reference_attention
from longspan_kernels.errors import BackendError
from longspan_kernels.launch.ops import cast_as_products, lse_like, op, output_like, without_autocast

# FLOPs of a visited pair, times D: its score and its share of the output forward; score again, dp, dq, dk and dv backward.
FORWARD_FLOPS, BACKWARD_FLOPS = 4, 10
Limits = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # lengths of queries and keys, segments of both


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key: str,
    *,
    causal: bool = False,
    q_lengths: Tensor | None = None,
    k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    block_bias: Tensor | None = None,
    bias_block: int = 0,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """q [B, H, Tq, D], k and v [B, Hkv, Tk, D] -> out [B, H, Tq, D], and lse [B, H, Tq] where asked for.

    `key` names a registered pattern. Under autocast q, k and v are cast as matrix products are. Arguments are taken as
    valid: `longspan.sparse_attention` checks them.

    Raises:
        BackendError: the backend cannot serve the call.
    """
    q, k, v = cast_as_products(q, k, v)
    asked, backend = backend, choose_backend(backend, q, k, active_transform(q, k, v, block_bias), by_pattern=True)
    if block_bias is not None:
        # As scores are; a bias of two bytes gets its gradient through this cast.
        block_bias = block_bias.to(torch.promote_types(q.dtype, torch.float32))
    limits = q_lengths, k_lengths, q_segments, k_segments
    options = _options(q, scale, limits, dropout_p, block_bias, bias_block)
    if asked == "auto" and backend == "blocked" and fused.takes(q, options):
        backend = CPU
    if asked == "auto" and backend == "triton" and cudnn.may_serve(q, options):
        backend = cudnn.CUDNN
    if backend == "dense":
        out, lse = _dense(q, k, v, Source(key, causal), options)
    elif backend == flash.FLASH and q.numel() and k.shape[2]:
        out, lse = flash.attend(q, k, v, Source(key, causal), options, return_lse)
    else:
        leaves = (x for x in (q, k, v, block_bias) if x is not None)
        with_backward = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
        out, lse = block_sparse_forward(q, k, v, *packed(options, Source(key, causal), backend, with_backward))
    return (out, lse) if return_lse else out


def attend_by(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: DeviceLayout,
    *,
    q_lengths: Tensor | None = None,
    k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """As `attend`, by a layout given as tensors, which get no gradient.

    Raises:
        BackendError: the backend cannot serve the call.
    """
    q, k, v = cast_as_products(q, k, v)
    transform = active_transform(q, k, v)
    backend = choose_backend(backend, q, k, transform)
    options = _options(q, scale, (q_lengths, k_lengths, q_segments, k_segments), dropout_p)
    source = Source.listed(layout, q.shape[0])
    if backend == "dense":
        if not (layout.index.is_cuda or torch.compiler.is_compiling() or transform):
            layout.check_values()
        out, lse = _dense(q, k, v, source, options)
    else:
        out, lse = block_sparse_forward(q, k, v, *packed(options, source, backend, False))
    return (out, lse) if return_lse else out


def _options(
    q: Tensor, scale: float | None, limits: Limits, dropout_p: float, bias: Tensor | None = None, bias_block: int = 0
) -> Options:
    """A call's options, with a new seed where it has dropout."""
    seed = torch.randint(0, 1 << 31, (1,), device=q.device) if dropout_p > 0.0 else None
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return Options(scale, *limits, float(dropout_p), seed, bias, bias_block)


def _dense(q: Tensor, k: Tensor, v: Tensor, source: Source, options: Options) -> tuple[Tensor, Tensor]:
    """The definition in plain torch, which autograd differentiates in every mode and order."""
    (B, H, Tq, _), Tk = q.shape, k.shape[2]
    key = source.key
    mask = dense_mask(key, Tq, Tk, H, source.causal, q.device) if key else source.device_layout(Tq, Tk).mask(B, H)
    exact = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q):
        out, lse = reference_attention(q.to(exact), k.to(exact), v.to(exact), mask, **options._asdict())
    return out.to(q.dtype), lse


def _layouts(
    source: Source, q: Tensor, k: Tensor, backend: str, bias_block: int, columns: bool
) -> tuple[Layout, Layout, Layout]:
    """As `layouts_for`; for listed blocks one layout, with transposed lists where `columns` is true."""
    if source.key:
        return layouts_for(q, k, source.key, source.causal, backend, bias_block)
    listed = source.device_layout(q.shape[2], k.shape[2])
    if not (columns or listed.index.is_cuda):  # in the forward pass alone, and not where a look would wait for the device
        listed.check_values()
    layout = listed.layout(q.shape[1], columns)
    return layout, layout, layout


@op("block_sparse_forward", f"(Tensor q, Tensor k, Tensor v, {SCHEMA}) -> (Tensor, Tensor)")
def block_sparse_forward(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    options, source, backend, with_backward = unpacked(arguments)
    if q.numel() == 0 or k.shape[2] == 0:
        return output_like(q).zero_(), lse_like(q).fill_(float("-inf"))
    if backend == CPU and chosen(source.key, shape_of(q, k), source.causal, "forward") == "dense":
        with without_autocast(q):
            out, lse = fused.dense_forward(q, k, v, source.key, source.causal, options)
        if not fused.too_large(lse):
            return out, lse
    if backend == cudnn.CUDNN:
        if cudnn.serves("forward", q, k, source):
            return cudnn.forward(q, k, v, source.causal, options.scale)
        backend = "triton"
    layout, *others = _layouts(source, q, k, backend, options.bias_block, columns=False)
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.forward import triton_forward

        return triton_forward(q, k, v, layout, options, (others[0], others[1]) if with_backward else None)
    with without_autocast(q):
        return blocked_forward(q, k, v, layout, options)


@op(
    "block_sparse_backward",
    f"(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {SCHEMA})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def block_sparse_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options, source, backend, _ = unpacked(arguments)
    none = q.new_empty(0)  # a custom op cannot return an optional tensor
    if q.numel() == 0 or k.shape[2] == 0:
        zeros = none if options.bias is None else output_like(options.bias).zero_()
        return output_like(q).zero_(), output_like(k).zero_(), output_like(v).zero_(), zeros
    key, causal = source.key, source.causal
    if backend == CPU and chosen(key, shape_of(q, k), causal, "backward") == "dense" and not fused.too_large(lse):
        with without_autocast(q):
            return *fused.dense_backward(without_keyless_rows(dout, lse), dlse, q, k, v, out, lse, key, causal, options), none
    if backend == cudnn.CUDNN:
        if dlse is None and cudnn.serves("backward", q, k, source):
            return *cudnn.backward(dout, q, k, v, out, lse, causal, options.scale), none
        backend = "triton"
    _, layout, columns = _layouts(source, q, k, backend, options.bias_block, columns=True)
    if not (backend == "triton" and _every_query_has_a_key(source, q, k, options)):
        dout = without_keyless_rows(dout, lse)
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.backward import triton_backward

        dq, dk, dv, dbias = triton_backward(dout, dlse, q, k, v, out, lse, layout, options, columns=columns)
    else:
        with without_autocast(q):
            dq, dk, dv, dbias = blocked_backward(dout, dlse, q, k, v, out, lse, layout, options)
    return dq, dk, dv, none if dbias is None else dbias


def _every_query_has_a_key(source: Source, q: Tensor, k: Tensor, options: Options) -> bool:
    """Whether each query of a GPU's call sees itself; Triton's kernels leave out queries beyond a length."""
    o = options
    if not (source.key and q.is_cuda and q.shape[2] == k.shape[2] and o.bias is None):
        return False
    if not (_same(o.q_lengths, o.k_lengths) and _same(o.q_segments, o.k_segments)):
        return False
    return every_query_sees_itself(source.key, int(q.shape[2]), int(q.shape[1]), source.causal, q.device)


def _same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    """Whether queries and keys share their lengths, or their segments: the same numbers in the same memory."""
    if ours is None or theirs is None:
        return ours is theirs
    return ours.data_ptr() == theirs.data_ptr() and ours.shape == theirs.shape and ours.stride() == theirs.stride()


def without_keyless_rows(dout: Tensor, lse: Tensor) -> Tensor:
    """dout [B, H, T, D] with zeros at the queries whose lse [B, H, T] is -inf; itself where a CPU finds none.

    A query without keys has a constant output: gradients that arrive at it are dropped, NaN and infinity too. Only a zero will
    do: its weights are 0, and 0 * NaN is NaN.
    """
    keyless = lse == float("-inf")
    if keyless.device.type == "cpu" and not keyless.any():
        return dout
    return torch.where(keyless[..., None], 0.0, dout)


@block_sparse_forward.register_fake
def _(q, k, v, *arguments):
    return output_like(q), lse_like(q)


@block_sparse_backward.register_fake
def _(dout, dlse, q, k, v, out, lse, *arguments):
    bias = arguments[BIAS]
    return output_like(q), output_like(k), output_like(v), q.new_empty(0) if bias is None else output_like(bias)


def _save(ctx, inputs, output):
    q, k, v, *arguments = inputs
    ctx.save_for_backward(q, k, v, *output, *(arguments[place] for place in TENSORS))
    ctx.arguments = [None if place in TENSORS else x for place, x in enumerate(arguments)]
    source = unpacked(tuple(ctx.arguments))[1]
    ctx.state = state_of(source.key) if source.key else ()
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dlse):
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    arguments = list(ctx.arguments)
    for place, x in zip(TENSORS, tensors, strict=True):
        arguments[place] = x
    options, source, _, _ = unpacked(tuple(arguments))
    if source.key and state_of(source.key) != ctx.state:
        raise BackendError(
            f"what {source.key} reads was changed between a call and its backward pass; change it after backward, or use "
            'backend="dense", which keeps the mask of each call'
        )
    if dout is None:
        dout = torch.zeros_like(out)
    found: list[Tensor | None] = [None] * (3 + len(arguments))
    if torch.is_grad_enabled():  # create_graph=True
        places = [place for place in (0, 1, 2, 3 + BIAS) if ctx.needs_input_grad[place]]
        for place, grad in zip(places, _differentiable(places, dout, dlse, q, k, v, options, source), strict=True):
            found[place] = grad
        return tuple(found)
    *found[:3], dbias = block_sparse_backward(dout, dlse, q, k, v, out, lse, *arguments)
    found[3 + BIAS] = None if options.bias is None else dbias
    return tuple(found)


def _differentiable(
    places: list[int], dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, options: Options, source: Source
) -> tuple[Tensor, ...]:
    """Gradients of some inputs that can be differentiated again: those of the definition, by torch's autograd."""
    elements = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if elements > DENSE_LIMIT:
        raise BackendError(
            f"create_graph=True: gradients of gradients come from the dense definition, which would hold {elements:,} scores "
            f"here (limit {DENSE_LIMIT:,}); take them over shorter sequences or fewer at once"
        )
    leaves = [q, k, v] if options.bias is None else [q, k, v, options.bias]
    leaves = [leaves[min(place, 3)] for place in places]
    out, lse = _dense(q, k, v, source, options)
    outputs, grads = ([out], [dout]) if dlse is None else ([out, lse], [dout, dlse])
    return torch.autograd.grad(outputs, leaves, grads, create_graph=True)


block_sparse_forward.register_autograd(_backward, setup_context=_save)


def _flops(each: int, q_shape: Any, k_shape: Any, arguments: tuple[Any, ...]) -> int:
    """FLOPs of visited pairs, not live ones, counted on the reference tiling: the same on every device and backend.

    Blocks listed at run time are not known here and count nothing.
    """
    options, source, _, _ = unpacked(arguments)
    if not source.key:
        return 0
    pairs = counted_pairs(source.key, q_shape[2], k_shape[2], q_shape[1], source.causal, options.bias_block)
    return each * q_shape[3] * q_shape[0] * pairs


@register_flop_formula(torch.ops.longspan.block_sparse_forward)
def forward_flops(q_shape, k_shape, v_shape, *arguments, out_shape=None, **kwargs) -> int:
    return _flops(FORWARD_FLOPS, q_shape, k_shape, arguments)


@register_flop_formula(torch.ops.longspan.block_sparse_backward)
def backward_flops(dout, dlse, q_shape, k_shape, v_shape, o_shape, lse_shape, *arguments, out_shape=None, **kwargs) -> int:
    return _flops(BACKWARD_FLOPS, q_shape, k_shape, arguments)
