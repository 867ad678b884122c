"""Chooses the key blocks of each query group in native sparse attention (arXiv:2502.11089): those with the largest weights in
the compressed branch.

Legend: B batch, H heads, Hkv key/value heads, G = H / Hkv, T tokens, D head width, nc compressed keys, nb blocks, n picks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import choose_backend
from longspan_kernels.errors import KernelError, check_lengths
from longspan_kernels.launch.ops import op, without_autocast
from longspan_kernels.selected.choose import MOST_PICKS, best_blocks

SCORES_AT_ONCE = 1 << 22  # scores of queries with compressed keys that plain torch holds
ALWAYS = torch.finfo(torch.float32).max  # the importance of blocks that every query picks


def choose_important_blocks(
    q: Tensor,
    keys: Tensor,
    lse: Tensor,
    picks: int,
    block_size: int,
    compressed_block: int,
    stride: int,
    *,
    causal: bool,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """A query's own block, the one before, the first, and those with most of the weight that the compressed branch gives.

    A block's importance is that weight, summed over the strides that a compressed key shares with it (equations 9 and 10) and
    over the heads of the group; it is recomputed from the log-sum-exp, and never leaves the registers of Triton's kernel.

    Args:
        q: [B, H, T, D].
        keys: [B, Hkv, nc, D]; compressed key c stands for tokens [c * stride, c * stride + compressed_block).
        lse: [B, H, T] natural log-sum-exp of the scores q . keys / sqrt(D) that a query sees; -inf where it sees none.
        picks: n.
        block_size: tokens a block; stride divides it, and compressed_block.
        causal: only blocks up to the query's own; compressed keys that end at or before the query.
        lengths: [B] int, tokens of each sequence.
        backend: as in `selected_attention`; plain torch takes over where Triton's kernel cannot hold that many picks.

    Returns:
        [B, Hkv, T, n] int32, the own block first, -1 where there are fewer; no gradient. Among equal importances Triton picks
        the lowest number, torch any.

    Raises:
        KernelError: shapes or sizes that do not fit: kernels would read past them.
        BackendError: the backend cannot serve the call.
    """
    _check(q, keys, lse, block_size, compressed_block, stride)
    check_lengths(lengths, q.shape[0])
    backend = choose_backend(backend, q, keys)
    backend = "triton" if backend == "triton" and picks - 1 <= MOST_PICKS else "torch"
    return _choose_important_blocks(
        q.detach(), keys.detach(), lse.detach(), lengths, picks, block_size, compressed_block, stride, causal, backend
    )


def _check(q: Tensor, keys: Tensor, lse: Tensor, block_size: int, compressed_block: int, stride: int) -> None:
    (B, H, T, D), heads = q.shape, keys.shape[1]
    if keys.shape[0] != B or keys.shape[3] != D or not heads or H % heads:
        raise KernelError(
            f"keys {tuple(keys.shape)} do not fit q {tuple(q.shape)}; give [{B}, a divisor of {H}, compressed keys, {D}]"
        )
    if lse.shape != (B, H, T):
        raise KernelError(f"lse {tuple(lse.shape)} does not fit q {tuple(q.shape)}; give {(B, H, T)}")
    for name, size in (("block_size", block_size), ("compressed_block", compressed_block)):
        if stride < 1 or size < 1 or size % stride:
            raise KernelError(f"stride = {stride} does not divide {name} = {size}; give a divisor, 1 or more")


@op("choose_important_blocks")
def _choose_important_blocks(
    q: Tensor,
    keys: Tensor,
    lse: Tensor,
    lengths: Tensor | None,
    picks: int,
    block_size: int,
    compressed_block: int,
    stride: int,
    causal: bool,
    backend: str,
) -> Tensor:
    if q.numel() == 0 or picks == 0:
        return _picks_like(q, keys, picks).fill_(-1)
    if backend == "triton":
        from longspan_kernels.selected.triton.choose_important import triton_choose_important

        return triton_choose_important(q, keys, lse, lengths, picks, block_size, compressed_block, stride, causal)
    with without_autocast(q):
        return _by_weights(q, keys, lse, lengths, picks, block_size, compressed_block, stride, causal)


def _by_weights(
    q: Tensor,
    keys: Tensor,
    lse: Tensor,
    lengths: Tensor | None,
    picks: int,
    block_size: int,
    compressed_block: int,
    stride: int,
    causal: bool,
) -> Tensor:
    """The definition, some rows at a time."""
    (B, H, T, D), (_, Hkv, nc, _) = q.shape, keys.shape
    blocks, exact, device = -(-T // block_size), torch.promote_types(q.dtype, torch.float32), q.device
    columns = keys.to(exact).transpose(2, 3)[:, :, None]  # (B, Hkv, 1, D, nc)
    shared = overlaps(nc, blocks, compressed_block, stride, block_size, device).to(exact)
    tokens = torch.full((1,), T, device=device) if lengths is None else lengths
    last = torch.arange(nc, device=device) * stride + compressed_block - 1  # the last token of each compressed key
    number = torch.arange(blocks, device=device)
    lse = lse.masked_fill(lse == float("-inf"), float("inf"))
    out = _picks_like(q, keys, picks)
    step = max(1, SCORES_AT_ONCE // (B * H * max(nc, blocks)))
    for first in range(0, T, step):
        rows = torch.arange(first, min(T, first + step), device=device)
        part = slice(first, first + len(rows))
        scores = (q[:, :, part].to(exact) * D**-0.5).unflatten(1, (Hkv, H // Hkv)) @ columns  # (B, Hkv, G, rows, nc)
        weights = scores.sub_(lse[:, :, part].unflatten(1, (Hkv, H // Hkv))[..., None]).exp_()
        seen = last <= (rows[:, None] if causal else tokens[:, None, None] - 1)  # (rows, nc) or (B or 1, 1, nc)
        importance = weights.sum(2).masked_fill_(~(seen if causal else seen[:, None]), 0.0) @ shared  # (B, Hkv, rows, nb)
        own = rows[:, None] // block_size
        importance.masked_fill_((number == own - 1) | (number == 0), ALWAYS)
        others = number < own if causal else number != own
        allowed = (others & (number * block_size < tokens[:, None, None]))[:, None]  # (B or 1, 1, rows, nb)
        picked = best_blocks(importance, allowed.expand(len(tokens), 1, len(rows), blocks), picks - 1)
        picked = torch.cat((own.expand(B, Hkv, len(rows), 1), picked), -1)
        out[:, :, part] = picked.masked_fill((rows >= tokens[:, None])[:, None, :, None], -1)
    return out


def overlaps(compressed: int, blocks: int, block: int, stride: int, size: int, device: torch.device) -> Tensor:
    """[nc, nb] float32: strides that a compressed block shares with a selection block of `size` tokens (equation 9)."""
    first = torch.arange(compressed, device=device)[:, None] * stride
    start = torch.arange(blocks, device=device) * size
    shared = torch.minimum(first + block, start + size) - torch.maximum(first, start)
    return shared.clamp(min=0).float() / stride


def _picks_like(q: Tensor, keys: Tensor, picks: int) -> Tensor:
    return torch.empty((q.shape[0], keys.shape[1], q.shape[2], picks), dtype=torch.int32, device=q.device)


@_choose_important_blocks.register_fake
def _(q, keys, lse, lengths, picks, block_size, compressed_block, stride, causal, backend):
    return _picks_like(q, keys, picks)


@register_flop_formula(torch.ops.longspan.choose_important_blocks)
def importance_flops(q_shape, keys_shape, *rest, out_shape=None, **kwargs) -> int:
    """One dot product for each query and compressed key, half of them under `causal`; strides at ends count twice in Triton."""
    (B, H, T, D), nc = q_shape, keys_shape[2]
    causal = rest[6]
    return 2 * D * B * H * T * nc // (2 if causal else 1)
