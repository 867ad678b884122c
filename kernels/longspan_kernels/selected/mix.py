"""The gated sum of two or three branches as one op: it reads each branch once a pass and keeps no product.

Legend: B batch, H heads, T tokens, D head width, N branches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import op, output_like, refuse_second_gradients


def gated_sum(gates: Tensor, branches: Sequence[Tensor], backend: str = "auto") -> Tensor:
    """The sum of gates[..., n] * branches[n] over n, added up in float32 or more.

    Args:
        gates: [B, H, T, N], N the number of branches.
        branches: each [B, H, T, D], all of one dtype.
        backend: as in `selected_attention`; plain torch but for "triton", which takes two or three branches.

    Raises:
        KernelError: shapes that do not fit.
        BackendError: the backend cannot serve the call.
    """
    transform = active_transform(gates, *branches)
    first = branches[0]
    wanted = (*first.shape[:3], len(branches))
    if gates.shape != wanted or any(branch.shape != first.shape for branch in branches):
        shapes = ", ".join(str(tuple(branch.shape)) for branch in branches)
        raise KernelError(f"gates {tuple(gates.shape)} and branches {shapes} do not fit; give {wanted} and all of one shape")
    if len(branches) in (2, 3) and transform is None and choose_backend(backend, first, first) == "triton":
        a, b, *rest = branches
        out: Tensor = _gated_sum(gates, a, b, rest[0] if rest else None)
        return out
    exact = torch.promote_types(torch.promote_types(first.dtype, torch.float32), gates.dtype)
    total = torch.zeros((), dtype=exact, device=first.device)
    for n, branch in enumerate(branches):
        total = total + gates[..., n, None].to(exact) * branch
    return total.to(first.dtype)


@op("gated_sum")
def _gated_sum(gates: Tensor, a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
    from longspan_kernels.selected.triton.mix import triton_gated_sum

    return triton_gated_sum(gates, a, b, c)


@op("gated_sum_backward")
def _gated_sum_backward(dout: Tensor, gates: Tensor, a: Tensor, b: Tensor, c: Tensor | None) -> list[Tensor]:
    from longspan_kernels.selected.triton.mix import triton_gated_sum_backward

    return triton_gated_sum_backward(dout, gates, a, b, c)


@_gated_sum.register_fake
def _(gates, a, b, c):
    return output_like(a)


@_gated_sum_backward.register_fake
def _(dout, gates, a, b, c):
    return [output_like(x) for x in (gates, a, b, c) if x is not None]


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    refuse_second_gradients("the gated sum has", "blocked")
    gates, a, b, c = ctx.saved_tensors
    found = _gated_sum_backward(dout, gates, a, b, c)
    return *found, *(None,) * (4 - len(found))


_gated_sum.register_autograd(_backward, setup_context=_save)
