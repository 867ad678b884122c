"""Chooses the key blocks that each query attends to: those with the highest scores.

Legend: B batch, H query heads, Hkv key/value heads, T tokens, D head width, nb candidate blocks, n picks a query.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import choose_backend
from longspan_kernels.errors import KernelError, check_lengths
from longspan_kernels.launch.ops import op, without_autocast

SCORES_AT_ONCE = 1 << 23  # query-block scores that plain torch holds at a time
MOST_PICKS = 16  # n up to which the Triton kernels choose: they hold all picks in registers, and work grows with n


def choose_blocks(
    q: Tensor,
    means: Tensor,
    picks: int,
    block_size: int,
    *,
    causal: bool,
    lengths: Tensor | None = None,
    own: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The blocks whose vector a query likes best, by their dot product in float32 (the router of MoBA, arXiv:2502.13189).

    A query may pick blocks that hold a token, but not its own (the one it is in); under `causal` those before its own.

    Args:
        q: [B, H, T, D], any strides.
        means: [B, Hkv, nb, D], one vector a block, of float32 or q's dtype; Hkv divides H.
        picks: n.
        block_size: tokens a block; block c holds those from c * block_size on.
        lengths: [B] int, tokens of each sequence; a query past it picks nothing.
        own: whether its own block comes first, beside the n that it picks, of every query.
        backend: as in `attend`; Triton chooses up to MOST_PICKS blocks a query, and plain torch takes over beyond.

    Returns:
        [B, H, T, n] int32 block numbers, or n + 1 with `own`; distinct, in no particular order, -1 where fewer may be picked.
        No gradient. Among equal scores Triton picks the lowest number, torch any. A block whose score is -inf is not picked,
        nor, in Triton, one whose score is NaN.

    Raises:
        KernelError: shapes that do not fit.
        BackendError: the backend cannot serve the call.
    """
    (B, H, _, D), heads = q.shape, means.shape[1]
    if means.shape[0] != B or means.shape[3] != D or not heads or H % heads:
        raise KernelError(
            f"means {tuple(means.shape)} do not fit q {tuple(q.shape)}; give [{B}, a divisor of {H}, blocks, {D}]"
        )
    check_lengths(lengths, B)
    backend = _backend(backend, q, means, picks)
    out: Tensor = _choose_blocks(q.detach(), means.detach(), lengths, picks, block_size, causal, own, backend)
    return out


def choose_scored_blocks(
    scores: Tensor,
    picks: int,
    block_size: int,
    length: int,
    *,
    causal: bool,
    first_row: int = 0,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """As `choose_blocks`, by scores [B, H, rows, nb] of the queries `first_row`, `first_row` + 1, ... of `length`.

    Returns:
        [B, H, rows, n] int32.

    Raises:
        KernelError: lengths that do not fit.
        BackendError: the backend cannot serve the call.
    """
    check_lengths(lengths, scores.shape[0])
    backend = _backend(backend, scores, scores, picks, by_width=False)
    out: Tensor = _choose_scored_blocks(scores.detach(), lengths, first_row, length, picks, block_size, causal, backend)
    return out


def _backend(backend: str, q: Tensor, k: Tensor, picks: int, by_width: bool = True) -> str:
    # Scores come from queries of any width: that of a score's row says nothing.
    backend = choose_backend(backend, q if by_width else q.new_empty((1, 1, 1, 16)), k)
    return backend if backend == "triton" and picks <= MOST_PICKS else "torch"


def best_blocks(scores: Tensor, allowed: Tensor, picks: int) -> Tensor:
    """scores [..., nb], allowed [..., nb] bool -> [..., picks] block numbers, -1 where fewer are allowed."""
    found = scores.masked_fill(~allowed, float("-inf")).topk(min(picks, scores.shape[-1]), sorted=False)
    best = torch.where(found.values > float("-inf"), found.indices, -1)
    return torch.nn.functional.pad(best, (0, picks - best.shape[-1]), value=-1)


def allowed_blocks(rows: Tensor, tokens: Tensor, blocks: int, block_size: int, causal: bool) -> Tensor:
    """[B or 1, rows, nb] bool: which blocks a query may pick; rows [rows], tokens [B or 1]."""
    number, own = torch.arange(blocks, device=rows.device), rows[:, None] // block_size
    others = number < own if causal else number != own
    filled = number * block_size < tokens[:, None]
    return others & filled[:, None] & (rows < tokens[:, None])[:, :, None]


@op("choose_blocks")
def _choose_blocks(
    q: Tensor, means: Tensor, lengths: Tensor | None, picks: int, block_size: int, causal: bool, own: bool, backend: str
) -> Tensor:
    if backend == "triton" and q.numel() and means.shape[2] and picks:
        from longspan_kernels.selected.triton.choose_kernels import triton_choose

        return triton_choose(q, means, lengths, picks, block_size, causal, own)
    out = _picks_like(q, picks + int(own)).fill_(-1)
    if own:
        out[..., 0] = torch.arange(q.shape[2], device=q.device) // block_size
    if q.numel() and means.shape[2] and picks:
        with without_autocast(q):
            _by_products(q, means, lengths, picks, block_size, causal, out[..., int(own) :])
    return out


def _by_products(
    q: Tensor, means: Tensor, lengths: Tensor | None, picks: int, block_size: int, causal: bool, out: Tensor
) -> None:
    """The definition, some rows at a time."""
    (B, H, T, _), (_, Hkv, blocks, _) = q.shape, means.shape
    exact = torch.promote_types(q.dtype, torch.float32)
    columns = means.to(exact).repeat_interleave(H // Hkv, 1).transpose(2, 3)  # (B, H, D, nb)
    tokens = torch.full((1,), T, device=q.device) if lengths is None else lengths
    step = max(1, SCORES_AT_ONCE // (B * H * blocks))
    for first in range(0, T, step):
        rows = torch.arange(first, min(T, first + step), device=q.device)
        allowed = allowed_blocks(rows, tokens, blocks, block_size, causal)[:, None]
        out[:, :, first : first + step] = best_blocks(q[:, :, first : first + step].to(exact) @ columns, allowed, picks)


@op("choose_scored_blocks")
def _choose_scored_blocks(
    scores: Tensor, lengths: Tensor | None, first_row: int, length: int, picks: int, block_size: int, causal: bool, backend: str
) -> Tensor:
    if scores.numel() == 0 or picks == 0:
        return _picks_like(scores, picks).fill_(-1)
    if backend == "triton":
        from longspan_kernels.selected.triton.choose_kernels import triton_choose_scored

        return triton_choose_scored(scores, lengths, first_row, length, picks, block_size, causal)
    rows = torch.arange(first_row, first_row + scores.shape[2], device=scores.device)
    tokens = torch.full((1,), length, device=scores.device) if lengths is None else lengths
    allowed = allowed_blocks(rows, tokens, scores.shape[3], block_size, causal)[:, None]
    return best_blocks(scores, allowed, picks).int()


def _picks_like(q: Tensor, picks: int) -> Tensor:
    """Empty picks [B, H, T, n]."""
    return torch.empty((*q.shape[:3], picks), dtype=torch.int32, device=q.device)


@_choose_blocks.register_fake
def _(q, means, lengths, picks, block_size, causal, own, backend):
    return _picks_like(q, picks + int(own))


@_choose_scored_blocks.register_fake
def _(scores, lengths, first_row, length, picks, block_size, causal, backend):
    return _picks_like(scores, picks)


@register_flop_formula(torch.ops.longspan.choose_blocks)
def choice_flops(q_shape, means_shape, lengths_shape, picks, block_size, causal, *rest, out_shape=None, **kwargs) -> int:
    """A dot product for each query and block that it may pick; lengths are not known here."""
    (batch, heads, length, width), blocks = q_shape, means_shape[2]
    whole, rest_of_it = divmod(length, block_size)
    before = block_size * (whole * (whole - 1) // 2) + rest_of_it * whole  # blocks before a query's own, summed over queries
    return 2 * width * batch * heads * (before if causal else length * (blocks - 1))
