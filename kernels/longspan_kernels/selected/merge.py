"""Attention over disjoint parts of the pairs, merged exactly through their log-sum-exp, as one op.

Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import op, output_like, refuse_second_gradients

NOTHING = -1e30  # stands for the log-sum-exp of no key: finite, so that gradients stay so


def merge_by_lse(
    parts: Sequence[tuple[Tensor, Tensor]], least: float = NOTHING / 2, backend: str = "auto", *, last_from: int = 0
) -> Tensor:
    """Outputs [B, H, T, D] with log-sum-exps [B, H, T] (a bias of the whole part included) -> [B, H, T, D]. Differentiable.

    Args:
        least: a query whose log-sum-exp over all parts is not above it has seen no key that counts, and gets 0.
        backend: as in `selected_attention`; plain torch but for "triton", which takes two or three parts.
        last_from: the first token that the last part counts for; it may hold any finite numbers before that.

    Raises:
        KernelError: parts of several shapes: kernels would read past the smaller ones.
        BackendError: the backend cannot serve the call.
    """
    first = parts[0][0]
    for number, (part, lse) in enumerate(parts):
        if part.shape != first.shape or lse.shape != first.shape[:3]:
            raise KernelError(
                f"part {number} is {tuple(part.shape)} with a log-sum-exp {tuple(lse.shape)}; give {tuple(first.shape)} and "
                f"{tuple(first.shape[:3])}, as the first part has"
            )
    flat = [x for part in parts for x in part]
    if len(parts) in (2, 3) and active_transform(*flat) is None and choose_backend(backend, first, first) == "triton":
        out: Tensor = _merge(*flat, *(None,) * (6 - len(flat)), float(least), last_from)
        return out
    known = torch.stack([lse for _, lse in parts], -1)  # (B, H, T, parts)
    if last_from:
        before = torch.arange(known.shape[2], device=known.device) < last_from
        absent = before[:, None] & (torch.arange(len(parts), device=known.device) == len(parts) - 1)
        known = known.masked_fill(absent, NOTHING)
    known = torch.where(torch.isinf(known), NOTHING, known)
    total = torch.logsumexp(known, -1, keepdim=True)
    share = torch.where(total > least, torch.exp(known - total), 0.0)
    exact = torch.promote_types(torch.promote_types(first.dtype, torch.float32), share.dtype)
    total = torch.zeros((), dtype=exact, device=first.device)
    for n, (part, _) in enumerate(parts):
        total = total + share[..., n, None].to(exact) * part
    return total.to(first.dtype)


@op("merge_by_lse")
def _merge(
    a: Tensor, lse_a: Tensor, b: Tensor, lse_b: Tensor, c: Tensor | None, lse_c: Tensor | None, least: float, last_from: int = 0
) -> Tensor:
    from longspan_kernels.selected.triton.merge import triton_merge

    return triton_merge(a, lse_a, b, lse_b, c, lse_c, least, last_from)


@op("merge_by_lse_backward")
def _merge_backward(
    dout: Tensor,
    a: Tensor,
    lse_a: Tensor,
    b: Tensor,
    lse_b: Tensor,
    c: Tensor | None,
    lse_c: Tensor | None,
    least: float,
    last_from: int = 0,
) -> list[Tensor]:
    from longspan_kernels.selected.triton.merge import triton_merge_backward

    return triton_merge_backward(dout, a, lse_a, b, lse_b, c, lse_c, least, last_from)


@_merge.register_fake
def _(a, lse_a, b, lse_b, c, lse_c, least, last_from=0):
    return output_like(a)


@_merge_backward.register_fake
def _(dout, a, lse_a, b, lse_b, c, lse_c, least, last_from=0):
    given = (a, lse_a, b, lse_b, c, lse_c)
    return [output_like(x) for x in given if x is not None]


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.numbers = inputs[6:]


def _backward(ctx, dout):
    refuse_second_gradients("merging has", "blocked")
    found = _merge_backward(dout, *ctx.saved_tensors, *ctx.numbers)
    return *found, *(None,) * (6 + len(ctx.numbers) - len(found))


_merge.register_autograd(_backward, setup_context=_save)
