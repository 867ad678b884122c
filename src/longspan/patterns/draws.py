"""Random blocks that depend on (seed, head, row) alone: no generator, no state, the same on every device and rank.

Legend: H heads, R rows (query blocks), n draws a row.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9 - (1 << 32)  # the golden ratio modulo 2^32; below 2^31, as Inductor adds it to 32-bit row numbers
MOST_ROWS = 1 << 17  # query blocks whose draws are looked at to know when a key block is drawn last
Number = TypeVar("Number", int, Tensor)


def mix(x: Number) -> Number:
    """A bijection of 32-bit values with good avalanche; its multipliers keep int64 products from overflowing."""
    x = x & MASK
    x = x ^ (x >> 16)
    x = (x * 0x21F0AAAD) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x735A2D97) & MASK
    return x ^ (x >> 15)


def fold(state, x):
    """The next 32-bit state after taking in `x`, ints or int64 tensors that broadcast."""
    return mix(state ^ mix(x + GOLDEN))


def distinct_draws(seed: int, heads: Tensor, rows: Tensor, available: Tensor, draws: int, most: int | None = None) -> Tensor:
    """Draws without repetition, uniform over all subsets (Floyd's algorithm).

    Args:
        seed: any int; its low 64 bits count.
        heads: [H] int64 head numbers.
        rows: [R] int64 row numbers.
        available: [R] int64, how many things a row chooses from; or [B, 1, R], of each sequence of a batch.
        draws: how many it takes.
        most: a number that no `available` is above; unless given, the host looks.

    Returns:
        [H, R, n] or [B, H, R, n] int64 in [0, available), n = min(draws, most); a row with at most `draws` to choose from
        lists all of them in order, then -1.
    """
    if most is None:
        most = int(available.max()) if len(available) else 0
    state = fold(fold(fold(0, seed & MASK), seed >> 32), heads[:, None])
    state = fold(state, rows[None, :])  # (H, R)
    shape = torch.broadcast_shapes(state.shape, available.shape)
    scarce = available <= draws
    drawn: list[Tensor] = []
    for n in range(min(draws, most)):
        top = available - draws + n
        pick = (fold(state, n) * (top + 1).clamp(min=1)) >> 32
        repeated = torch.zeros(shape, dtype=torch.bool, device=rows.device)
        for earlier in drawn:
            repeated = repeated | (earlier == pick)
        pick = torch.where(repeated, top, pick)
        drawn.append(torch.where(scarce, torch.where(available > n, n, -1), pick).expand(shape))
    return torch.stack(drawn, -1) if drawn else torch.empty((*shape, 0), dtype=torch.int64, device=rows.device)


def last_rows(drawn: Tensor, blocks: int) -> Tensor:
    """[blocks] int64: the last row whose list [R, n] of key blocks (-1 for none) holds each block, -1 where none does."""
    rows = torch.arange(drawn.shape[0], device=drawn.device)[:, None].expand_as(drawn)
    out = torch.full((blocks + 1,), -1, dtype=torch.int64, device=drawn.device)
    return out.scatter_reduce(0, torch.where(drawn < 0, blocks, drawn).flatten(), rows.flatten(), "amax")[:blocks]


def per_head_lists(heads: tuple[int, ...], drawn: Tensor) -> Tensor:
    """[len(heads), R, n] lists of some heads -> lists indexed by head number, -1 for the heads not asked for."""
    if heads == tuple(range(len(heads))):
        return drawn
    out = torch.full((max(heads) + 1, *drawn.shape[1:]), -1, dtype=torch.int64, device=drawn.device)
    out[list(heads)] = drawn
    return out


def block_rows(q_len: int, k_len: int, block_size: int, device: torch.device) -> Tensor:
    """[R] int64: the blocks that queries lie in, in key coordinates (negative where queries outnumber keys)."""
    return torch.arange((k_len - q_len) // block_size, -(-k_len // block_size), device=device)
