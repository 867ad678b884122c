"""The custom op for layouts made at run time: the lists are tensor arguments, so a compiled graph carries them along.

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.blocked import Options
from longspan_kernels.block_sparse.blocked_passes import blocked_backward, blocked_forward
from longspan_kernels.block_sparse.device_layout import DeviceLayout
from longspan_kernels.block_sparse.keyless import without_keyless_rows
from longspan_kernels.block_sparse.op import BackendError, _empty_lse, _like, cast_as_products, choose_backend, exact_products
from longspan_kernels.block_sparse.transforms import active_transform


def attend_by(
    q: Tensor, k: Tensor, v: Tensor, layout: DeviceLayout, *,
    q_lengths: Tensor | None = None, k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None, k_segments: Tensor | None = None,
    scale: float | None = None, dropout_p: float = 0.0, return_lse: bool = False, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """As `attend`, by a layout given as tensors. The lists themselves get no gradient.

    Raises:
        BackendError: the backend cannot serve the call.
    """
    q, k, v = cast_as_products(q, k, v)
    if backend == "dense":
        raise BackendError('backend="dense" cannot serve a DeviceLayout; use "auto" or "blocked"')
    transform = active_transform(q, k, v)
    if transform is not None:
        raise BackendError(
            f"a DeviceLayout (blocks chosen at run time) has no rule for {transform}; write its blocks as a BlockTable, for "
            'which backend="dense" has one'
        )
    excluded = None if layout.excluded is None else layout.excluded.expand(q.shape[0], -1, -1)
    out, lse = torch.ops.longspan.device_layout_forward(
        q, k, v, layout.index, layout.count, layout.q_order, layout.k_order, layout.block_q, layout.block_k, layout.causal,
        q.shape[-1] ** -0.5 if scale is None else float(scale), float(dropout_p), choose_backend(backend, q, k),
        q_lengths, k_lengths, q_segments, k_segments,
        torch.randint(0, 1 << 31, (1,), device=q.device) if dropout_p > 0.0 else None, excluded,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _rebuilt(q, k, index, count, q_order, k_order, block_q, block_k, causal, excluded, columns):
    made = DeviceLayout(index, count, block_q, block_k, q.shape[2], k.shape[2], causal, q_order, k_order, excluded)
    if not (columns or index.is_cuda):  # in the forward pass alone, and not where a look would wait for the device
        made.check_values()
    return made.layout(q.shape[1], columns)


@torch.library.custom_op("longspan::device_layout_forward", mutates_args=())
def device_layout_forward(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, count: Tensor, q_order: Tensor | None, k_order: Tensor | None,
    block_q: int, block_k: int, causal: bool, scale: float, dropout_p: float, backend: str, q_lengths: Tensor | None,
    k_lengths: Tensor | None, q_segments: Tensor | None, k_segments: Tensor | None, seed: Tensor | None,
    excluded: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if q.numel() == 0 or k.shape[2] == 0:
        return _like(q).zero_(), _empty_lse(q).fill_(float("-inf"))
    layout = _rebuilt(q, k, index, count, q_order, k_order, block_q, block_k, causal, excluded, False)
    options = Options(scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed)
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.forward import triton_forward

        return triton_forward(q, k, v, layout, **vars(options))
    with exact_products(q):
        return blocked_forward(q, k, v, layout, options)


@torch.library.custom_op("longspan::device_layout_backward", mutates_args=())
def device_layout_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, index: Tensor,
    count: Tensor, q_order: Tensor | None, k_order: Tensor | None, block_q: int, block_k: int, causal: bool, scale: float,
    dropout_p: float, backend: str, q_lengths: Tensor | None, k_lengths: Tensor | None, q_segments: Tensor | None,
    k_segments: Tensor | None, seed: Tensor | None, excluded: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if q.numel() == 0 or k.shape[2] == 0:
        return _like(q).zero_(), _like(k).zero_(), _like(v).zero_()
    layout = _rebuilt(q, k, index, count, q_order, k_order, block_q, block_k, causal, excluded, True)
    dout = without_keyless_rows(dout, lse)
    options = Options(scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed)
    if backend == "triton":
        from longspan_kernels.block_sparse.triton.backward import triton_backward

        return triton_backward(dout, dlse, q, k, v, out, lse, layout, **vars(options))[:3]
    with exact_products(q):
        return blocked_backward(dout, dlse, q, k, v, out, lse, layout, options)[:3]


@device_layout_forward.register_fake
def _(q, k, v, *rest):
    return _like(q), _empty_lse(q)


@device_layout_backward.register_fake
def _(dout, dlse, q, k, v, *rest):
    return _like(q), _like(k), _like(v)


def _save(ctx, inputs, output):
    q, k, v, index, count, q_order, k_order, *plain = inputs
    ctx.plain, tensors = plain[:6], plain[6:]
    ctx.save_for_backward(q, k, v, *output, index, count, q_order, k_order, *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dlse):
    if torch.is_grad_enabled():
        raise BackendError(
            "create_graph=True: a DeviceLayout (blocks chosen at run time) has no gradients of gradients; write its blocks as "
            'a BlockTable, for which every backend has them (as backend="dense" does)'
        )
    q, k, v, out, lse, index, count, q_order, k_order, *tensors = ctx.saved_tensors
    dq, dk, dv = torch.ops.longspan.device_layout_backward(
        torch.zeros_like(out) if dout is None else dout, dlse, q, k, v, out, lse, index, count, q_order, k_order, *ctx.plain,
        *tensors,
    )  # fmt: skip
    return dq, dk, dv, *(None,) * 16


device_layout_forward.register_autograd(_backward, setup_context=_save)
