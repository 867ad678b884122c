"""Rules that speak of whole blocks of positions: beside the diagonal, listed for each row, from a table, or each a key."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from longspan_kernels.block_sparse.grid import Tiles, band_pairs, in_bounds, numbered, pairs_in_band, unique_pairs
from longspan_kernels.block_sparse.rules import Band, Pairs, Traits, Unbounded

MAX_SIGNATURE_BLOCKS = 256


class BlockBand(Band):
    """lo <= i // size - j // size <= hi: whole blocks beside the diagonal; (0, 0) is the query's own block."""

    def __init__(self, size: int, lo: int | None = 0, hi: int | None = 0):
        super().__init__(lo, hi)
        self.size = size

    def live(self, h, i, j):
        return in_bounds(i // self.size - j // self.size, self.lo, self.hi)

    def signature(self, h, i0, j0, q, k):
        d = i0 // self.size - j0 // self.size
        reach_q, reach_k = q.span // self.size + 1, k.span // self.size + 1
        offsets = [offset_of(i0, q.span, self.size), offset_of(j0, k.span, self.size)]
        return offsets + self.distances(d, reach_q, reach_k)

    def band(self):
        # Block distance b puts i - j in [b * size - (size - 1), b * size + size - 1].
        return (
            None if self.lo is None else self.lo * self.size - (self.size - 1),
            None if self.hi is None else self.hi * self.size + self.size - 1,
        )

    def traits(self):
        return Traits(grows=False, fills=False, listed=False, block=self.size)


class BlockRule(Unbounded):
    """Whole blocks of `block_size`, given by membership of (query block, key block)."""

    block_size: int

    @abstractmethod
    def contains(self, h: Tensor | int, qb: Tensor, kb: Tensor) -> Tensor:
        """Whether pairs of (query block, key block) are kept."""

    def live(self, h, i, j):
        return self.contains(h, i // self.block_size, j // self.block_size)

    def signature(self, h, i0, j0, q, k):
        b = self.block_size
        # How many blocks a tile can reach into, given how its first position sits in a block.
        reach_q = int(((i0 % b + q.span) // b).max()) + 1 if i0.numel() else 1
        reach_k = int(((j0 % b + k.span) // b).max()) + 1 if j0.numel() else 1
        if reach_q * reach_k > MAX_SIGNATURE_BLOCKS:
            return None
        columns = [offset_of(i0, q.span, b), offset_of(j0, k.span, b)]
        qb, kb = i0 // b, j0 // b
        word, used = torch.zeros_like(i0), 0
        for a in range(reach_q):
            for c in range(reach_k):
                word |= self.contains(h, qb + a, kb + c).long() << used
                used += 1
                if used == 62:
                    columns.append(word)
                    word, used = torch.zeros_like(i0), 0
        return [*columns, word]

    @abstractmethod
    def block_pairs(self, h: int, device: torch.device) -> Pairs:
        """All (query block, key block) of one head."""

    def traits(self):
        return Traits(grows=False, fills=False, listed=True, block=self.block_size)

    def tiles(self, h, q, k, lo, hi):
        if not (q.natural and k.natural):
            return band_pairs(q, k, lo, hi)
        qb, kb = self.block_pairs(h, q.device)
        rows, columns = spread(qb * self.block_size, kb * self.block_size, self.block_size, q, k)
        return pairs_in_band(q, k, *unique_pairs(rows, columns, k.count), lo, hi)


class BlockLists(BlockRule):
    """Key blocks listed for each head and query block: `lists` [H or 1, rows, R] int64, -1 for none; row 0 of the list is
    query block `first_row`."""

    def __init__(self, block_size: int, lists: Tensor, first_row: int = 0):
        self.block_size, self.lists, self.first_row = block_size, lists, first_row
        self.per_head = lists.shape[0] > 1

    def contains(self, h, qb, kb):
        lists = self.lists.to(qb.device)
        row = qb - self.first_row
        valid = (row >= 0) & (row < lists.shape[1]) & (kb >= 0)
        head = h if self.per_head else 0
        row = row.clamp(0, lists.shape[1] - 1)
        out = torch.zeros_like(valid)
        for r in range(lists.shape[2]):
            out = out | (lists[head, row, r] == kb)
        return out & valid

    def block_pairs(self, h, device):
        lists = self.lists[h if self.per_head else 0].to(device)
        rows = torch.arange(lists.shape[0], device=device)[:, None].expand_as(lists)
        keep = lists >= 0
        return rows[keep] + self.first_row, lists[keep]


class BlockTableRule(BlockRule):
    """A bool table [H or 1, query blocks, key blocks]."""

    def __init__(self, block_size: int, table: Tensor):
        self.block_size, self.table = block_size, table
        self.per_head = table.shape[0] > 1

    def contains(self, h, qb, kb):
        table = self.table.to(qb.device)
        valid = (qb >= 0) & (qb < table.shape[1]) & (kb >= 0) & (kb < table.shape[2])
        head = h if self.per_head else 0
        return table[head, qb.clamp(0, table.shape[1] - 1), kb.clamp(0, table.shape[2] - 1)] & valid

    def block_pairs(self, h, device):
        pairs = self.table[h if self.per_head else 0].to(device).nonzero()
        return pairs[:, 0], pairs[:, 1]


class PastBlocks(Unbounded):
    """Key j stands for a block of tokens, the next key for one that begins `step` tokens later: query row r sees key j where
    r >= j * step + first.

    Args:
        shift: Tk - Tq, by which key coordinates differ from rows of queries; keys are fewer here.
    """

    def __init__(self, step: int, first: int, shift: int):
        self.step, self.first, self.shift = step, first, shift

    def live(self, h, i, j):
        return i - self.shift >= j * self.step + self.first

    def signature(self, h, i0, j0, q, k):
        # Tokens from the first key's to the first query: below -q.span no query sees a key, from step * k.span on all see all.
        ahead = i0 - self.shift - self.first - j0 * self.step
        return [ahead.clamp(-q.span - 1, self.step * k.span)]

    def traits(self):
        return Traits(grows=True, fills=False, listed=True)

    def tiles(self, h, q, k, lo, hi):
        last = torch.div(q.base + q.span - self.shift - self.first, self.step, rounding_mode="floor")  # key that a tile sees
        counts = torch.searchsorted(k.base, last, right=True) if k.natural else torch.full_like(last, k.count)
        return pairs_in_band(q, k, *numbered(counts), lo, hi)


def offset_of(first: Tensor, span: int, size: int) -> Tensor:
    """Where in a block a tile starts, -1 for a tile that lies within one block, where this tells nothing."""
    offset = first % size
    return torch.where(offset + span < size, -1, offset)


def spread(i: Tensor, j: Tensor, size: int, q: Tiles, k: Tiles) -> Pairs:
    """Tiles of natural orders that squares of side `size` with first positions (i, j) reach into."""
    row0, rows = tiles_reached(i, size, q)
    column0, columns = tiles_reached(j, size, k)
    square, place = numbered(rows * columns)
    return row0[square] + place // columns[square], column0[square] + place % columns[square]


def tiles_reached(first: Tensor, size: int, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """The first tile that `size` positions from each of `first` reach into, and how many they do."""
    low = tiles.tile_of(first).clamp(min=0)
    high = tiles.tile_of(first + size - 1).clamp(max=tiles.count - 1)
    return low, (high - low + 1).clamp(min=0)
