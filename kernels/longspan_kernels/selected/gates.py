"""Gates that queries set for several branches which read them, and the sum of the gradients that come back.

Legend: B batch, H heads, T tokens, D head width, N gates a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import op, output_like, refuse_second_gradients

GATES = 3  # of the kernels
COLUMNS = 8  # of products with fewer, tensor cores read one number at a time


def query_gates(q: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto") -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """sigmoid(q . weight + bias), and q itself, once for each of three branches.

    Branches that read the q they are given here send their gradients back through one kernel, which adds up all of them
    with those of the gates; autograd alone would pass over memory once a branch.

    Args:
        q: [B, H, T, D], any strides.
        weight: [H, D, 3]; bias: [H, 1, 3].
        backend: as in `selected_attention`; plain torch but for "triton".

    Returns:
        gates [B, H, T, 3] in the dtype of q, and q three times.

    Raises:
        KernelError: shapes that do not fit.
        BackendError: the backend cannot serve the call.
    """
    _, H, _, D = q.shape
    for name, given, shape in (("weight", weight, (H, D, GATES)), ("bias", bias, (H, 1, GATES))):
        if given.shape != shape:
            raise KernelError(f"{name} {tuple(given.shape)} does not fit q {tuple(q.shape)}; give {shape}")
    if active_transform(q, weight, bias) is None and choose_backend(backend, q, q) == "triton" and q.numel():
        gates, *branches = _Gates.apply(q, weight, bias)
        return gates, tuple(branches)
    columns = torch.nn.functional.pad(weight.to(q.dtype), (0, COLUMNS - weight.shape[-1]))
    return torch.sigmoid((q @ columns)[..., : weight.shape[-1]] + bias.to(q.dtype)), (q, q, q)


class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        gates = _query_gates(q, weight, bias)
        ctx.save_for_backward(q, weight, bias, gates)
        ctx.set_materialize_grads(False)
        return gates, q.view_as(q), q.view_as(q), q.view_as(q)

    @staticmethod
    def backward(ctx, dgates: Tensor | None, *branches: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        refuse_second_gradients("gates have", "blocked")
        q, weight, bias, gates = ctx.saved_tensors
        dgates = torch.zeros_like(gates) if dgates is None else dgates
        dq, dweight, dbias = _query_gates_backward(q, weight, gates, dgates, *branches)
        return dq, dweight.to(weight.dtype), dbias.to(bias.dtype)


@op("query_gates")
def _query_gates(q: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from longspan_kernels.selected.triton.gates import triton_query_gates

    return triton_query_gates(q, weight, bias)


@op("query_gates_backward")
def _query_gates_backward(
    q: Tensor, weight: Tensor, gates: Tensor, dgates: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    from longspan_kernels.selected.triton.gates import triton_query_gates_backward

    return triton_query_gates_backward(q, weight, gates, dgates, a, b, c)


@_query_gates.register_fake
def _(q, weight, bias):
    return torch.empty((*q.shape[:3], GATES), dtype=q.dtype, device=q.device)


@_query_gates_backward.register_fake
def _(q, weight, gates, dgates, a, b, c):
    exact = torch.float32
    return (
        output_like(q),
        torch.empty(weight.shape, dtype=exact, device=q.device),
        torch.empty((weight.shape[0], 1, GATES), dtype=exact, device=q.device),
    )


@register_flop_formula(torch.ops.longspan.query_gates)
def gate_flops(q_shape, *rest, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(q_shape) * GATES


@register_flop_formula(torch.ops.longspan.query_gates_backward)
def gate_gradient_flops(q_shape, *rest, out_shape=None, **kwargs) -> int:
    return 2 * gate_flops(q_shape)
