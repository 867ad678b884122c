"""Bucketed attention as torch custom ops: autograd, fake tensors, FLOP formula. Triton alone; plain torch attends by
`block_sparse` layouts of the same chunks.

Legend: B batch, H heads, R rounds, T tokens, D head width, N = B H R.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.bucketed.options import Buckets
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import op, output_like, refuse_second_gradients


def served(backend: str, *tensors: Tensor) -> bool:
    """Whether the kernels serve a call of these tensors, the queries first, on `backend` (as in `selected_attention`)."""
    transform = active_transform(*tensors)
    return transform is None and choose_backend(backend, tensors[0], tensors[0]) == "triton"


def bucketed_attention(
    q: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    how: Buckets,
    *,
    scale: float,
    lengths: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Softmax attention of each token to those that some round finds: of its bucket, in its chunk or the one before.

    Queries serve as keys. A token that sees nothing gets its own value. Two runs give the same bits.

    Args:
        q, v: [B, H, T, D]; any strides.
        tables: order, tiles and numbers of `bucket_tables` for the N sequences of all heads and rounds.
        how: which pairs count.
        scale: of the scores.
        lengths: [B] int; tokens past it have output 0, as the tables know none of them.
        dropout_p: share of the weights that fall away; bits are drawn for (sequence of N, query, key).

    Returns:
        [B, H, T, D].

    Raises:
        KernelError: shapes that do not fit.
    """
    (B, H, T, _), N = q.shape, tables[0].shape[0]
    if v.shape != q.shape or B * H * how.rounds != N or tables[0].shape[1] != T:
        raise KernelError(
            f"q {tuple(q.shape)}, v {tuple(v.shape)} and orders {tuple(tables[0].shape)} do not fit; give v like q and orders "
            f"[{B * H * how.rounds}, {T}], one for each sequence, head and round"
        )
    if how.unit_queries and not how.unit_keys:
        raise KernelError("unit_queries without unit_keys: keys are the queries, so they are brought to unit length as well")
    seed = torch.randint(0, 1 << 31, (1,), device=q.device) if dropout_p > 0.0 else None
    order, tiles, numbers = tables[:3]
    return _forward(q, v, order, tiles, numbers, lengths, seed, how.numbers, float(scale), float(dropout_p))[0]


@op("bucketed_forward")
def _forward(
    q: Tensor,
    v: Tensor,
    order: Tensor,
    tiles: Tensor,
    numbers: Tensor,
    lengths: Tensor | None,
    seed: Tensor | None,
    how: list[int],
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D] and lse [B, H, T] float32, -inf where a token sees nothing."""
    if q.numel() == 0:
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
    from longspan_kernels.bucketed.triton.launches import triton_forward

    rest = (order, tiles, numbers, lengths, seed, Buckets.of(how), scale, dropout_p)
    if interprets_bfloat16(q):
        out, lse = triton_forward(q.float(), v.float(), *rest)
        return out.to(q.dtype), lse
    return triton_forward(q, v, *rest)


@op("bucketed_backward")
def _backward_op(
    dout: Tensor,
    q: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    order: Tensor,
    tiles: Tensor,
    numbers: Tensor,
    lengths: Tensor | None,
    seed: Tensor | None,
    how: list[int],
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of q, as queries and as keys, and of v."""
    if q.numel() == 0:
        return output_like(q), output_like(v)
    from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
    from longspan_kernels.bucketed.triton.launches import triton_backward

    rest = (order, tiles, numbers, lengths, seed, Buckets.of(how), scale, dropout_p)
    if interprets_bfloat16(q):
        dq, dv = triton_backward(dout.float(), q.float(), v.float(), out.float(), lse, *rest)
        return dq.to(q.dtype), dv.to(v.dtype)
    return triton_backward(dout, q, v, out, lse, *rest)


@_forward.register_fake
def _(q, v, order, tiles, numbers, lengths, seed, how, scale, dropout_p):
    return output_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)


@_backward_op.register_fake
def _(dout, q, v, out, lse, order, tiles, numbers, lengths, seed, how, scale, dropout_p):
    return output_like(q), output_like(v)


def _save(ctx, inputs, output):
    *tensors, how, scale, dropout_p = inputs
    q, v, *tables = tensors
    ctx.save_for_backward(q, v, *output, *tables)
    ctx.call = (how, scale, dropout_p)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, _):
    refuse_second_gradients("bucketed attention has", "blocked")
    if dout is None:
        return (None,) * 10
    dq, dv = _backward_op(dout, *ctx.saved_tensors, *ctx.call)
    return dq, dv, *(None,) * 8


_forward.register_autograd(_backward, setup_context=_save)


def pairs_at_most(q_shape, how) -> int:
    """Pairs of each token with its chunk and the one before, over rounds and heads."""
    B, H, T, _ = q_shape
    return B * H * how[0] * T * 2 * how[1]


@register_flop_formula(torch.ops.longspan.bucketed_forward)
def forward_flops(q_shape, v_shape, order_shape, tiles_shape, numbers_shape, l, s, how, *rest, out_shape=None, **kwargs) -> int:
    return 4 * q_shape[3] * pairs_at_most(q_shape, how)


@register_flop_formula(torch.ops.longspan.bucketed_backward)
def backward_flops(dout_shape, q_shape, *rest, out_shape=None, **kwargs) -> int:
    return 10 * q_shape[3] * pairs_at_most(q_shape, rest[8])
