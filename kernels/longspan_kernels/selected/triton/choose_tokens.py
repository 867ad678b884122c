"""Chooses tokens by index scores on Triton: some queries' scores are in memory at a time. Triton is imported here: import this
file lazily.

Legend: B batch, J indexer heads, E their width, T tokens, n picks a query, M lanes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton import configs
from longspan_kernels.selected.triton.best_tokens import best_tokens
from longspan_kernels.selected.triton.call_layout import by_rows, in_units
from longspan_kernels.selected.triton.index_scores import index_scores


@remembered(256)
def _chunks(batch: int, length: int, picks: int, tile: configs.Tile, lanes: int, room: int) -> tuple[tuple[int, ...], ...]:
    """(first sequence, sequences, first row, rows, tiles of rows, tiles of keys) of each chunk."""
    return tuple(_parts(batch, length, picks, tile, lanes, room))


def _parts(batch: int, length: int, picks: int, tile: configs.Tile, lanes: int, room: int) -> Iterator[tuple[int, ...]]:
    def shape(rows: int, stop: int) -> tuple[int, int, int]:
        """(tiles of rows, tiles of keys, bytes)"""
        row_tiles, key_tiles = -(-rows // tile.rows), -(-stop // tile.keys)
        return row_tiles, key_tiles, 4 * (row_tiles * tile.rows * (key_tiles * tile.keys + lanes) + 2 * rows * room)

    first = picks  # earlier queries see no more than they pick
    while first < length:
        rows = length - first
        while shape(rows, first + rows)[2] > configs.SCORE_BYTES and rows > tile.rows:
            rows = max(1, rows * 7 // 8 // tile.rows) * tile.rows
        row_tiles, key_tiles, size = shape(rows, first + rows)
        together = max(1, configs.SCORE_BYTES // size) if rows == length - picks else 1
        for b in range(0, batch, together):
            yield b, min(together, batch - b), first, rows, row_tiles, key_tiles
        first += rows


@on_its_device
def triton_choose_tokens(queries: Tensor, keys: Tensor, weights: Tensor, lengths: Tensor | None, picks: int) -> Tensor:
    """As `index.choose_tokens`."""
    if interprets_bfloat16(queries):
        queries, keys = queries.float(), keys.float()
    queries, keys = by_rows(queries), by_rows(keys[:, None])
    lengths = None if lengths is None else from_16_bytes(lengths.contiguous())
    (B, J, T, E), device = queries.shape, queries.device
    out = torch.empty((B, T, picks), dtype=torch.int32, device=device)
    tile = configs.index_tile(E, queries.dtype.itemsize)
    lanes = configs.lanes(picks, tile.keys)
    room = 1 << (2 * picks - 1).bit_length()
    chunks = _chunks(B, T, picks, tile, lanes, room)
    sizes = [
        (s * row_tiles * tile.rows * key_tiles * tile.keys, s * row_tiles * tile.rows * lanes, s * rows * room)
        for _, s, _, rows, row_tiles, key_tiles in chunks
    ]
    most = [max(size) for size in zip(*sizes, strict=True)] if sizes else [4, 4, 4]
    scores, best, found, found_at = (torch.empty(size, dtype=torch.int32, device=device) for size in (*most, most[2]))
    q_b, q_j, q_t = in_units(queries)
    k_b, _, k_t = in_units(keys)
    w_b, w_j, w_t = weights.stride()
    weights = from_16_bytes(weights)
    strides = {"q_b": q_b, "q_j": q_j, "q_t": q_t, "k_b": k_b, "k_t": k_t, "w_b": w_b, "w_j": w_j, "w_t": w_t}
    scored = {**strides, "J": J, "E": E, "BE": width_of(E), "M": lanes, "BM": tile.rows, "BN": tile.keys, "length": T}
    scored["HELD"] = J <= configs.HELD_HEADS
    selected = {"length": T, "n": picks, "M": lanes, "ROOM": room, "BLOCK": min(configs.SCORES_A_STEP, room), "BN": tile.keys}
    launch = configs.selecting(lanes)
    tensors = (scores, best, lengths, found, found_at, out)
    own = {"first_b": 0, "first": 0, "rows": min(picks, T), "padded": 0, "key_tiles": 0}
    run_kernel(best_tokens, B * min(picks, T), launch, *tensors, **own, **selected)
    for b, sequences, first, rows, row_tiles, key_tiles in chunks:
        own = {"first_b": b, "first": first, "key_tiles": key_tiles}
        programs = sequences * row_tiles * (lanes // tile.keys)
        operands = (queries, keys, weights, lengths, scores, best)
        run_kernel(index_scores, programs, tile.launch, *operands, row_tiles=row_tiles, **own, **scored)
        padded = row_tiles * tile.rows
        run_kernel(best_tokens, sequences * rows, launch, *tensors, rows=rows, padded=padded, **own, **selected)
    return out
