"""Attention of each query token to key blocks of its own choice: the queries of each key block are gathered, not rounded.

A query with n picks stands in n orders. In each of them queries are sorted by the block they picked, and a tile of queries
has one key block. Everything is built on the device, and nothing waits for it.

Legend: B batch, H query heads, Hkv key/value heads, P heads that pick for themselves (H, or Hkv where a group shares its
picks), G = H / P, T tokens, D head width, n picks a query, nb key blocks, bs tokens a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.attention.content import with_lse
from longspan_kernels.block_sparse import DeviceLayout, tile_side


def tile_sides(q: Tensor, block_size: int) -> tuple[int, int]:
    """Query and key places of a tile; the key side divides a block."""
    # Each pick spreads T queries over T / bs blocks, so bs queries a block: larger tiles would be mostly padding.
    return tile_side(q, 1 << (block_size.bit_length() - 1)), tile_side(q, block_size)


def order_by_block(picks: Tensor, blocks: int, tile: int) -> tuple[Tensor, Tensor]:
    """picks [B, P, R] (-1 for none) -> rows in the order of their block, each block beginning a tile.

    Returns:
        [B, P, places] the row at each place, -1 for none, and [B, P, places / tile] the block of each tile, `blocks` for none.
    """
    R, device = picks.shape[-1], picks.device
    key = torch.where(picks < 0, blocks, picks)
    sorted_key, row = torch.sort(key, dim=-1, stable=True)
    counts = torch.zeros((*picks.shape[:2], blocks + 1), dtype=torch.int64, device=device)
    counts.scatter_add_(-1, key, torch.ones_like(key))
    tiles = (counts[..., :blocks] + tile - 1) // tile
    stop = tiles.cumsum(-1)  # (B, P, nb), in tiles
    first_place = torch.nn.functional.pad((stop - tiles) * tile, (0, 1))
    first_row = counts.cumsum(-1) - counts
    rank = torch.arange(R, device=device) - first_row.gather(-1, sorted_key)
    count = -(-R // tile) + blocks  # tiles: every block wastes less than one
    # Rows that picked nothing go to a place beyond the last, which is cut off.
    place = torch.where(sorted_key < blocks, first_place.gather(-1, sorted_key) + rank, count * tile)
    order = torch.full((*picks.shape[:2], count * tile + 1), -1, dtype=torch.int64, device=device)
    order.scatter_(-1, place, row)
    numbers = torch.arange(count, device=device).expand(*picks.shape[:2], count).contiguous()
    return order[..., :-1], torch.searchsorted(stop, numbers, right=True)


def attend_to_picks(
    q: Tensor, k: Tensor, v: Tensor, picks: Tensor, block_size: int, *, k_lengths: Tensor | None = None,
    dropout_p: float = 0.0, backend: str = "auto",
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Whole key blocks that each query picked, not masked inside.

    Args:
        q: [B, H, T, D]; k, v: [B, Hkv, T, D].
        picks: [B, P, T, n] int block numbers, distinct for a query, -1 for none.
        k_lengths: [B], keys of each sequence.

    Returns:
        n pairs of output [B, H, T, D] and log-sum-exp [B, H, T], to be merged; 0 and -inf where nothing was picked.
    """
    (B, H, T, D), (_, P, _, n) = q.shape, picks.shape
    G, blocks = H // P, -(-T // block_size)
    tile_q, tile_k = tile_sides(q, block_size)
    with torch.no_grad():
        rows = picks.permute(0, 1, 3, 2).reshape(B, P * n, T).repeat_interleave(G, -1)  # (B, P n, T G)
        order, block = order_by_block(rows, blocks, tile_q)
        share = block_size // tile_k  # tiles of a block
        index = block[..., None] * share + torch.arange(share, device=q.device)  # (B, P n, tiles, share)
        # The last block may be cut short.
        exists = (-(-T // tile_k) - block * share).clamp(0, share)
        layout = DeviceLayout(
            index.clamp(max=-(-T // tile_k) - 1).int(), exists.int(), tile_q, tile_k, T * G, T, q_order=order.int()
        )
    folded = q.view(B, P, G, T, D).transpose(2, 3).reshape(B, P, 1, T * G, D).expand(B, P, n, T * G, D)
    out, lse = with_lse(
        folded.reshape(B, P * n, T * G, D), k, v, layout, lengths=None if k_lengths is None else (None, k_lengths),
        dropout_p=dropout_p, backend=backend,
    )  # fmt: skip
    out = out.view(B, P, n, T, G, D).permute(2, 0, 1, 4, 3, 5).reshape(n, B, H, T, D)
    lse = lse.view(B, P, n, T, G).permute(2, 0, 1, 4, 3).reshape(n, B, H, T)
    return list(zip(out.unbind(0), lse.unbind(0), strict=True))
