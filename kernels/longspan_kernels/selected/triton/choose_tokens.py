"""Chooses tokens by index scores on Triton: some queries' scores are in memory at a time. Triton is imported here: import this
file lazily.

Legend: B batch, J indexer heads, E their width, T tokens, n picks a query, M lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import Plan, as_contiguous, from_16_bytes, on_its_device, width_of
from longspan_kernels.selected.triton import configs
from longspan_kernels.selected.triton.best_tokens import best_tokens
from longspan_kernels.selected.triton.call_layout import by_rows, in_units
from longspan_kernels.selected.triton.index_scores import index_scores


@dataclass(frozen=True)
class Shape:
    """Everything that launches depend on. Strides are those of batch, head and token, of queries and keys in units."""

    batch: int
    heads: int
    length: int
    width: int
    picks: int
    dtype: torch.dtype
    device: torch.device
    query_strides: tuple[int, int, int]
    key_strides: tuple[int, int, int]
    weight_strides: tuple[int, int, int]
    companions: tuple[torch.dtype | None, ...]  # of weights and lengths


@dataclass(frozen=True)
class Chunk:
    """Queries whose scores are in memory at a time."""

    first_b: int
    sequences: int
    first: int
    rows: int
    row_tiles: int
    key_tiles: int


class Launches:
    """The launches of one shape.

    Attributes:
        sizes: numbers in the scores, lanes, bits and tokens found of the largest chunk.
        few: the launch for queries that see no more than they pick.
        chunks: of each chunk the launch that scores and the one that selects.
    """

    def __init__(self, shape: Shape):
        self.shape = s = shape
        self.tile = tile = configs.index_tile(s.width, s.dtype.itemsize)
        self.lanes = configs.lanes(s.picks, tile.keys)
        self.room = min(configs.MOST_LANES, 1 << (2 * s.picks - 1).bit_length())
        few = min(s.picks, s.length)
        self.few = self.selecting(Chunk(0, s.batch, 0, few, 0, 0))
        self.sizes, self.chunks = [0] * 4, []
        for chunk in self.cut():
            self.sizes = list(map(max, self.sizes, self.memory(chunk)))
            self.chunks.append((self.scoring(chunk), self.selecting(chunk)))

    def cut(self) -> Iterator[Chunk]:
        s, tile, first = self.shape, self.tile, self.shape.picks
        most = configs.score_bytes(s.batch, s.length)
        while first < s.length:
            rows = s.length - first

            def of(rows: int, b: int = 0, sequences: int = 1, first: int = first) -> Chunk:
                return Chunk(b, sequences, first, rows, -(-rows // tile.rows), -(-(first + rows) // tile.keys))

            while 4 * sum(self.memory(of(rows))) > most and rows > tile.rows:
                rows = max(1, rows * 7 // 8 // tile.rows) * tile.rows
            whole = rows == s.length - s.picks
            together = max(1, most // (4 * sum(self.memory(of(rows))))) if whole else 1
            for b in range(0, s.batch, together):
                yield of(rows, b, min(together, s.batch - b))
            first += rows

    def memory(self, chunk: Chunk) -> tuple[int, int, int, int]:
        """Numbers in scores, lanes, bits and tokens found."""
        padded, rows = (chunk.sequences * rows for rows in (chunk.row_tiles * self.tile.rows, chunk.rows))
        width = chunk.key_tiles * self.tile.keys
        return padded * width, padded * self.lanes, rows * width // 16, rows * self.room

    def scoring(self, chunk: Chunk) -> Plan:
        s, tile = self.shape, self.tile
        q_b, q_j, q_t = s.query_strides
        k_b, _, k_t = s.key_strides
        w_b, w_j, w_t = s.weight_strides
        strides = {"q_b": q_b, "q_j": q_j, "q_t": q_t, "k_b": k_b, "k_t": k_t, "w_b": w_b, "w_j": w_j, "w_t": w_t}
        own = {"first_b": chunk.first_b, "first": chunk.first, "row_tiles": chunk.row_tiles, "key_tiles": chunk.key_tiles}
        constants = {"J": s.heads, "E": s.width, "BE": width_of(s.width), "HELD": s.heads <= configs.HELD_HEADS}
        constants |= {"M": self.lanes, "BM": tile.rows, "BN": tile.keys}
        programs = chunk.sequences * chunk.row_tiles * (self.lanes // tile.keys)
        return Plan(index_scores, programs, {**strides, "length": s.length, **own, **constants}, tile.launch)

    def selecting(self, chunk: Chunk) -> Plan:
        s, tile = self.shape, self.tile
        own = {"first_b": chunk.first_b, "first": chunk.first, "rows": chunk.rows, "padded": chunk.row_tiles * tile.rows}
        steps = {"MARKED": configs.MARKED_SCORES, "WORDS": configs.MARKED_WORDS, "BLOCK": configs.SCORES_A_STEP}
        sizes = {"key_tiles": chunk.key_tiles, "n": s.picks, "M": self.lanes, "ROOM": self.room, "BN": tile.keys}
        numbers = {"length": s.length, **own, **sizes, **steps}
        return Plan(best_tokens, chunk.sequences * chunk.rows, numbers, configs.selecting(self.lanes))


@remembered(64)
def launches_of(shape: Shape) -> Launches:
    return Launches(shape)


@on_its_device
def triton_choose_tokens(queries: Tensor, keys: Tensor, weights: Tensor, lengths: Tensor | None, picks: int) -> Tensor:
    """As `index.choose_tokens`."""
    if interprets_bfloat16(queries):
        queries, keys = queries.float(), keys.float()
    queries, keys, weights = by_rows(queries), by_rows(keys[:, None]), from_16_bytes(weights)
    lengths = as_contiguous(lengths)
    (B, J, T, E), device = queries.shape, queries.device
    companions = (weights.dtype, None if lengths is None else lengths.dtype)
    w_b, w_j, w_t = weights.stride()
    strides = in_units(queries), in_units(keys), (w_b, w_j, w_t)
    launches = launches_of(Shape(B, J, T, E, picks, queries.dtype, device, *strides, companions))
    out = torch.empty((B, T, picks), dtype=torch.int32, device=device)
    scores, lanes, bits, found = (torch.empty(size, dtype=torch.int32, device=device) for size in launches.sizes)
    launches.few(scores, lanes, lengths, bits, found, out)
    for score, select in launches.chunks:
        score(queries, keys, weights, lengths, scores, lanes)
        select(scores, lanes, lengths, bits, found, out)
    return out
