"""Causal Sinkhorn balancing as one op: rows and columns of a matrix of blocks are normalised in turn.

Legend: B batch, H heads, n blocks, K iterations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import op, refuse_second_gradients

NOTHING = -1e30  # the logarithm of nothing, finite so that differences and gradients are
ROWS = 8  # of a tile
MOST_BLOCKS = 1 << 15  # 32 bits number their pairs


def balance_causally(scores: Tensor, blocks: Tensor | None, iterations: int, backend: str = "auto") -> Tensor:
    """exp of scores below the diagonal, rows normalised, then each column over the rows so far, and so on (2002.11296).

    Row i is thus a function of rows up to i alone.

    Args:
        scores: [B, H, n, n] float32 (or float64 but for "triton"), row i the block that attends, column j the block attended.
        blocks: [B] or [1] int, the blocks that exist; None for all. Rows and columns past them are 0.
        iterations: K, normalisations of rows and columns.
        backend: as in `selected_attention`; plain torch but for "triton", which takes up to MOST_BLOCKS blocks.

    Returns:
        [B, H, n, n] in the dtype of the scores, 0 on the diagonal and above.

    Raises:
        KernelError: scores that are not square, or no iterations.
        BackendError: the backend cannot serve the call.
    """
    if scores.dim() != 4 or scores.shape[2] != scores.shape[3]:
        raise KernelError(f"scores {tuple(scores.shape)} are not [B, H, n, n]; give a square matrix of blocks for each head")
    check_iterations(iterations)
    transform = active_transform(scores)
    fits = scores.numel() > 0 and scores.shape[-1] <= MOST_BLOCKS and scores.dtype == torch.float32
    if not fits or transform is not None:
        return reference_balance(scores, blocks, iterations)
    like_heads = scores[:, :, :1, :1].expand(-1, -1, -1, 64)  # backends are chosen by the width of heads
    if choose_backend(backend, like_heads, like_heads, transform) != "triton":
        return reference_balance(scores, blocks, iterations)
    out: Tensor = _balance(scores, blocks, iterations)[0]
    return out


def check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise KernelError(f"iterations = {iterations} normalise nothing; give 1 or more")


def reference_balance(scores: Tensor, blocks: Tensor | None, iterations: int) -> Tensor:
    """The definition, by logarithms."""
    number = torch.arange(scores.shape[-1], device=scores.device)
    allowed = (number[:, None] > number)[None, None]
    if blocks is not None:
        allowed = allowed & (number < blocks[:, None])[:, None, :, None]
    scores = scores.masked_fill(~allowed, NOTHING)
    for _ in range(iterations):
        scores = (scores - torch.logsumexp(scores, -1, keepdim=True)).masked_fill(~allowed, NOTHING)
        scores = (scores - torch.logcumsumexp(scores, -2)).masked_fill(~allowed, NOTHING)
    return scores.exp()


@op("balance")
def _balance(scores: Tensor, blocks: Tensor | None, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix; the logarithms of rows [B, H, K, n', n'] that each iteration has divided by their sums, and those of the
    sums of their columns up to the end of each tile of rows, [B, H, K, tiles, n']; n' is n in whole units of 16."""
    from longspan_kernels.selected.triton.balance import triton_balance

    return triton_balance(scores, blocks, iterations)


@op("balance_backward")
def _balance_backward(dout: Tensor, blocks: Tensor | None, rows: Tensor, sums: Tensor) -> Tensor:
    from longspan_kernels.selected.triton.balance import triton_balance_backward

    return triton_balance_backward(dout, blocks, rows, sums)


@_balance.register_fake
def _(scores, blocks, iterations):
    return balanced_like(scores, iterations)


def balanced_like(scores: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors like the results of `_balance`."""
    B, H, n, _ = scores.shape
    wide = -(-n // 16) * 16
    sums = scores.new_empty(B, H, iterations, wide // ROWS, wide)
    return scores.new_empty(B, H, n, n), scores.new_empty(B, H, iterations, wide, wide), sums


@_balance_backward.register_fake
def _(dout, blocks, rows, sums):
    return rows.new_empty(dout.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[1], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, *unused):
    refuse_second_gradients("balancing has", "blocked")
    if dout is None:
        return None, None, None
    return _balance_backward(dout, *ctx.saved_tensors), None, None


_balance.register_autograd(_backward, setup_context=_save)
