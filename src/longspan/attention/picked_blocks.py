"""An order of rows by the block that each picked, each block at the beginning of a tile; built on the device, without a wait.

Legend: B batch, P heads, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def order_by_block(picks: Tensor, blocks: int, tile: int) -> tuple[Tensor, Tensor]:
    """picks [B, P, R] (-1 for none) -> rows in the order of their block, each block beginning a tile.

    Returns:
        [B, P, places] the row at each place, -1 for none, and [B, P, places / tile] the block of each tile, `blocks` for none.
    """
    R, device = picks.shape[-1], picks.device
    key = torch.where(picks < 0, blocks, picks)
    sorted_key, row = torch.sort(key, dim=-1, stable=True)
    # not in place: under vmap the picks have a dimension that fresh tensors lack
    counts = torch.zeros((*picks.shape[:2], blocks + 1), dtype=torch.int64, device=device)
    counts = counts.scatter_add(-1, key, torch.ones_like(key))
    tiles = (counts[..., :blocks] + tile - 1) // tile
    stop = tiles.cumsum(-1)  # (B, P, nb), in tiles
    first_place = torch.nn.functional.pad((stop - tiles) * tile, (0, 1))
    first_row = counts.cumsum(-1) - counts
    rank = torch.arange(R, device=device) - first_row.gather(-1, sorted_key)
    count = -(-R // tile) + blocks  # tiles: every block wastes less than one
    # Rows that picked nothing go to a place beyond the last, which is cut off.
    place = torch.where(sorted_key < blocks, first_place.gather(-1, sorted_key) + rank, count * tile)
    order = torch.full((*picks.shape[:2], count * tile + 1), -1, dtype=torch.int64, device=device)
    order = order.scatter(-1, place, row)
    numbers = torch.arange(count, device=device).expand(*picks.shape[:2], count).contiguous()
    return order[..., :-1], torch.searchsorted(stop, numbers, right=True)
