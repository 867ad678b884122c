"""The gated sum of three branches as one op: it reads each branch once a pass and keeps no product.

Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import BackendError


def gated_sum(gates: Tensor, a: Tensor, b: Tensor, c: Tensor, backend: str = "auto") -> Tensor:
    """gates[..., 0] * a + gates[..., 1] * b + gates[..., 2] * c, added up in float32 or more.

    Args:
        gates: [B, H, T, 3].
        a, b, c: [B, H, T, D].
        backend: as in `selected_attention`; plain torch but for "triton".
    """
    transform = active_transform(gates, a, b, c)
    if choose_backend(backend, a, b, transform) != "triton" or transform is not None:
        exact = torch.promote_types(a.dtype, torch.float32)
        return sum(gates[..., n, None].to(exact) * x for n, x in enumerate((a, b, c))).to(a.dtype)  # type: ignore[union-attr]
    return torch.ops.longspan.gated_sum(gates, a, b, c)


@torch.library.custom_op("longspan::gated_sum", mutates_args=())
def _gated_sum(gates: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    from longspan_kernels.selected.triton.mix import triton_gated_sum

    return triton_gated_sum(gates, a, b, c)


@torch.library.custom_op("longspan::gated_sum_backward", mutates_args=())
def _gated_sum_backward(dout: Tensor, gates: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from longspan_kernels.selected.triton.mix import triton_gated_sum_backward

    return triton_gated_sum_backward(dout, gates, a, b, c)


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@_gated_sum.register_fake
def _(gates, a, b, c):
    return _like(a)


@_gated_sum_backward.register_fake
def _(dout, gates, a, b, c):
    return _like(gates), _like(a), _like(b), _like(c)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    if torch.is_grad_enabled():
        raise BackendError('create_graph=True: the gated sum has gradients of gradients with backend="blocked" alone')
    return torch.ops.longspan.gated_sum_backward(dout, *ctx.saved_tensors)


_gated_sum.register_autograd(_backward, setup_context=_save)
