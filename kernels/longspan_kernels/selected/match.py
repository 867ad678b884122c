"""Causal Sinkhorn matching as one op: each block's keys and values are mixed from those of earlier blocks, place by place.

Its backward pass is written by hand. As small ops, each with a gradient of its own, it took the host longer than the device.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, n blocks, l tokens a block, K iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import op, refuse_second_gradients, without_autocast
from longspan_kernels.selected.balance import MOST_BLOCKS, balanced_like, check_iterations, reference_balance

LEAST_DRAWN = 1e-20  # of an exponential variable, so that its logarithm is finite


def match_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    drawn: Tensor | None,
    *,
    block_size: int,
    iterations: int,
    temperature: float,
    noise: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Keys and values of each block mixed from earlier blocks by the balanced matrix of blocks; 0 in the first block.

    The score of query block i and key block j is (mean of the queries up to the first of block i) . (mean key of block j) /
    (sqrt(D) * temperature), plus Gumbel noise. Means and scores are float32 or more.

    Args:
        q: [B, H, T, D]. k, v: [B, Hkv, T, D]. T is a multiple of block_size, and all places hold tokens.
        drawn: [B, H, n, n] float32 (float64 of float64), exponential variables that the noise is made of; None for no noise.
        block_size: l. iterations: K, see `balance_causally`.
        temperature: what scores, noise included, are divided by.
        noise: factor of the noise.
        backend: as in `selected_attention`; plain torch but for "triton".

    Returns:
        Two tensors [B, H, T, D] in the dtype of k.

    Raises:
        KernelError: shapes that do not fit, or no iterations.
        BackendError: the backend cannot serve the call.
    """
    _check(q, k, v, drawn, block_size)
    check_iterations(iterations)
    transform = active_transform(q, k, v)
    scale, noise = q.shape[-1] ** -0.5 / temperature, noise / temperature
    fits = q.numel() > 0 and q.shape[2] // block_size <= MOST_BLOCKS and q.dtype != torch.float64
    if not fits or transform is not None or choose_backend(backend, q, k, transform) != "triton":
        with without_autocast(q):
            return reference_match(q, k, v, drawn, block_size, iterations, scale, noise)
    k_matched, v_matched, *_ = _match_blocks(q, k, v, drawn, block_size, iterations, scale, noise)
    return k_matched, v_matched


def _check(q: Tensor, k: Tensor, v: Tensor, drawn: Tensor | None, block_size: int) -> None:
    B, H, T, D = q.shape
    if k.shape != v.shape or k.shape[0] != B or k.shape[2:] != q.shape[2:] or H % max(1, k.shape[1]):
        raise KernelError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: blocks are matched within a sequence; give k and v "
            f"[{B}, key/value heads that divide {H}, {T}, {D}]"
        )
    if block_size < 1 or T % block_size:
        raise KernelError(
            f"block_size = {block_size} does not divide {T} tokens into whole blocks; give a divisor, or pad them"
        )
    n = T // block_size
    if drawn is not None and drawn.shape != (B, H, n, n):
        raise KernelError(f"drawn {tuple(drawn.shape)} is not one number a pair of blocks; give [{B}, {H}, {n}, {n}]")


def reference_match(
    q: Tensor, k: Tensor, v: Tensor, drawn: Tensor | None, block_size: int, iterations: int, scale: float, noise: float
) -> tuple[Tensor, Tensor]:
    """The definition."""
    exact, repeats, n = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1], q.shape[2] // block_size
    q, k, v = (x.unflatten(2, (n, block_size)) for x in (q, k, v))
    k, v = (x if repeats == 1 else x.repeat_interleave(repeats, 1) for x in (k, v))
    scores = queries_so_far(q, exact) @ (k.sum(3, dtype=exact) / block_size).mT * scale
    if drawn is not None:
        scores = scores - noise * drawn.clamp(min=LEAST_DRAWN).log()
    shares = reference_balance(scores, None, iterations).to(k.dtype)
    k_matched, v_matched = ((shares @ x.flatten(3)).unflatten(3, k.shape[3:]).flatten(2, 3) for x in (k, v))
    return k_matched, v_matched


def queries_so_far(q: Tensor, exact: torch.dtype) -> Tensor:
    """The mean of all queries up to the first of each block: q [B, H, n, l, D] -> [B, H, n, D]."""
    n, size = q.shape[2:4]
    # Sums run along the last dimension, where GPUs scan quickly.
    sums = q.sum(3, dtype=exact).transpose(2, 3).contiguous().cumsum(3).transpose(2, 3)
    first = torch.nn.functional.pad(sums, (0, 0, 1, 0))[:, :, :n] + q[:, :, :, 0].to(exact)
    return first / (torch.arange(n, device=q.device) * size + 1)[:, None]


@op("match_blocks")
def _match_blocks(
    q: Tensor, k: Tensor, v: Tensor, drawn: Tensor | None, block_size: int, iterations: int, scale: float, noise: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Matched keys and values, then what the backward pass reads: mean queries [B, H, n, D] and keys [B, Hkv, n, D] in float32,
    the matrix in the dtype of k, and two tensors of balancing."""
    from longspan_kernels.selected.triton.match import triton_match

    with without_autocast(q):
        return triton_match(q, k, v, drawn, block_size, iterations, scale, noise)


@op("match_blocks_backward")
def _match_blocks_backward(
    dk_matched: Tensor,
    dv_matched: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    keys: Tensor,
    shares: Tensor,
    rows: Tensor,
    sums: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from longspan_kernels.selected.triton.match import triton_match_backward

    with without_autocast(k):
        return triton_match_backward(dk_matched, dv_matched, k, v, queries, keys, shares, rows, sums, scale)


@_match_blocks.register_fake
def _(q, k, v, drawn, block_size, iterations, scale, noise):
    (B, H, _, D), n = q.shape, q.shape[2] // block_size
    queries, keys = (x.new_empty((B, x.shape[1], n, D), dtype=torch.float32) for x in (q, k))
    matrix, *kept = balanced_like(queries.new_empty((B, H, n, n)), iterations)
    return k.new_empty(q.shape), v.new_empty(q.shape), queries, keys, matrix.to(k.dtype), *kept


@_match_blocks_backward.register_fake
def _(dk_matched, dv_matched, k, v, queries, keys, shares, rows, sums, scale):
    return tuple(torch.empty(x.shape, dtype=k.dtype, device=k.device) for x in (dk_matched, k, v))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:3], *output[2:])
    ctx.scale = inputs[6]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx, dk_matched, dv_matched, *unused):
    refuse_second_gradients("matching has", "blocked")
    if dk_matched is None and dv_matched is None:
        return (None,) * 8
    dk_matched = torch.zeros_like(dv_matched) if dk_matched is None else dk_matched
    dv_matched = torch.zeros_like(dk_matched) if dv_matched is None else dv_matched
    found = _match_blocks_backward(dk_matched, dv_matched, *ctx.saved_tensors, ctx.scale)
    return *found, *(None,) * 5


_match_blocks.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.longspan.match_blocks)
def matching_flops(q_shape, k_shape, v_shape, drawn_shape, block_size, *rest, out_shape=None, **kwargs) -> int:
    """Scores of blocks, and their matrix times all keys and values."""
    B, H, T, D = q_shape
    n = T // block_size
    return 2 * B * H * n * n * D * (1 + 2 * block_size)


@register_flop_formula(torch.ops.longspan.match_blocks_backward)
def matching_gradient_flops(dk_shape, dv_shape, k_shape, v_shape, queries_shape, *rest, out_shape=None, **kwargs) -> int:
    n = queries_shape[2]
    return 2 * matching_flops(dk_shape, k_shape, v_shape, None, dk_shape[2] // n)
