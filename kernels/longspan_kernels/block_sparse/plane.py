"""Neighbourhoods in a plane: tokens that fill a grid row by row, and tiles of them that are short in both directions.

A window of 13 x 13 in a grid 128 wide reaches into 13 rows. Tiles of 64 consecutive tokens visit those rows from side to
side; tiles of 8 x 8 tokens visit 24 x 24 of them. With a dilation d the tokens of one residue of d in both directions are a
grid of their own (a class), and neighbours are always of one class.

Legend: r row and c column of a position, W the grid's width, d dilation, class (r % d, c % d), place (y, x) = (r // d, c // d)
within the class, tile th x tw places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.block_sparse.grid import (
    INSIDE,
    PAD,
    Plane,
    Tiles,
    band_pairs,
    check_tile_count,
    numbered,
    pairs_in_band,
    tighten,
    unique_pairs,
)
from longspan_kernels.block_sparse.orders import Extent, Order
from longspan_kernels.block_sparse.rules import Pairs, Rule, Traits

MOST_CLASSES = 1 << 12  # of a dilation; their order would leave nothing but tiles of single tokens
MOST_BANDS = 256  # rows that a window reaches into, each a band of its own


class Neighbourhood(Rule):
    """Keys at most `reach` steps of `dilation` away in both directions of a grid `height` x `width`.

    With `shifted`, a window that would reach over the edge lies inside it instead, so that every query has equally many keys
    (neighbourhood attention, arXiv:2204.07143).
    """

    per_head = False

    def __init__(self, height: int, width: int, reach: int, dilation: int, shifted: bool):
        self.height, self.width, self.reach, self.dilation, self.shifted = height, width, reach, dilation, shifted

    def live(self, h, i, j):
        rows = self._sees(i // self.width, j // self.width, self.height)
        return rows & self._sees(i % self.width, j % self.width, self.width)

    def _sees(self, i: Tensor, j: Tensor, size: int) -> Tensor:
        low, high = self.interval(i, size)
        return ((i - j) % self.dilation == 0) & (j >= low) & (j <= high)

    def interval(self, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The first and the last coordinate that a query at x sees in one direction, of `size` coordinates."""
        reach = self.reach * self.dilation
        if not self.shifted:
            return x - reach, x + reach
        own, d = x % self.dilation, self.dilation
        places = (size - own + d - 1) // d
        centre = (x // d).clamp(min=self.reach).minimum(places - 1 - self.reach)
        return own + (centre - self.reach) * d, own + (centre + self.reach) * d

    @property
    def farthest(self) -> int:
        """Coordinates between a query and a key at most, in one direction."""
        return self.reach * self.dilation * (2 if self.shifted else 1)

    def band(self):
        most = self.farthest * self.width + self.farthest
        # Where Tq > Tk, queries stand in rows before the first; a window that lies inside the grid is any distance below them.
        return None if self.shifted else -most, most

    def traits(self):
        return Traits(grows=False, fills=False, listed=True)

    def orders(self, extent):
        if self.dilation**2 > min(MOST_CLASSES, extent.k_len):
            return []
        return [PlaneClasses.fitting(self.width, self.dilation, self.reach, extent)]

    def tiles(self, h, q, k, lo, hi):
        if (own := self._planes(q, k)) is not None:
            rows, columns = self._in_plane(*own)
        else:
            rows, columns = self._in_bands(q, k, lo, hi)
        return pairs_in_band(q, k, rows, columns, lo, hi)

    def _planes(self, q: Tiles, k: Tiles) -> tuple[Plane, Plane] | None:
        """How the tiles lie in this grid, where they do."""
        if q.plane is None or k.plane is None:
            return None
        own = self.width, self.dilation
        return (q.plane, k.plane) if own == (q.plane.width, q.plane.dilation) == (k.plane.width, k.plane.dilation) else None

    def _in_plane(self, q: Plane, k: Plane) -> Pairs:
        """Each query tile with the key tiles of its class that lie in the rectangle its tokens see."""
        kind, d = q.place[:, 0], self.dilation
        ranges = []
        for axis, size in ((0, self.height), (1, self.width)):
            own = kind // d if axis == 0 else kind % d
            first = own + q.place[:, axis + 1] * d
            last = (first + (q.tile[axis] - 1) * d).minimum(own + (size - 1 - own) // d * d)
            low, high = self.interval(first, size)[0], self.interval(last, size)[1]
            side = k.tile[axis] * d
            begin = ((low - own) // side).clamp(min=0)
            stop = ((high - own) // side + 1).clamp(max=k.table.shape[axis + 1])
            ranges.append((begin, (stop - begin).clamp(min=0)))
        (top, rows), (left, columns) = ranges
        tile, place = numbered(rows * columns)
        found = k.table[kind[tile], top[tile] + place // columns[tile], left[tile] + place % columns[tile]]
        return tile[found >= 0], found[found >= 0]

    def _in_bands(self, q: Tiles, k: Tiles, lo: int | None, hi: int | None) -> Pairs:
        """Tiles of any order: the keys of a row that is m rows away lie in a band around m * width."""
        before = bool((q.base < 0).any())  # rows before the first, where Tq > Tk
        if before and self.shifted:
            return band_pairs(q, k, lo, hi)
        most = self.farthest // self.dilation
        most = most if before else min(most, (self.height - 1) // self.dilation)
        across = min(self.farthest, self.width - 1)
        if 2 * most + 1 > MOST_BANDS:
            return band_pairs(q, k, *tighten((lo, hi), self.band()))
        found = []
        for m in range(-most, most + 1):
            centre = m * self.dilation * self.width
            found.append(band_pairs(q, k, *tighten((lo, hi), (centre - across, centre + across))))
        return unique_pairs(torch.cat([r for r, _ in found]), torch.cat([c for _, c in found]), k.count)

    def signature(self, h, i0, j0, q, k):
        W = self.width
        r, c = i0 // W - j0 // W, i0 % W - j0 % W
        planes = self._planes(q, k)
        # Past these differences no pair of the two tiles is live.
        down = self.farthest + q.span // W + k.span // W + 3
        before = self.shifted and bool((i0 < 0).any())  # these see the first rows from anywhere
        columns = [r if before else r.clamp(-down, down)]
        if planes is None:
            columns += [i0 % W, j0 % W]
        else:
            columns.append(c)
            for plane, first in zip(planes, (i0, j0), strict=True):
                # Where in its tile the first token stands tells in which row and column each of the others is.
                x = first % W
                columns.append(x if plane.table.shape[2] == 1 else x // self.dilation % plane.tile[1])
        if self.shifted:
            columns.append(self._near_edge(i0 // W, q.span // W + 1, self.height))
            if planes is not None:
                columns.append(self._near_edge(i0 % W, planes[0].tile[1] * self.dilation, W))
        return columns

    def _near_edge(self, x: Tensor, span: int, size: int) -> Tensor:
        """x where a window of a coordinate within `span` of it may be shifted, else one number for all."""
        most = (self.reach + 1) * self.dilation + span
        return torch.where((x >= most) & (x < size - most), INSIDE, x)


@dataclass(frozen=True)
class PlaneClasses(Order):
    """Class by class of a plane, in tiles of `size` places."""

    width: int
    dilation: int
    size: int
    name = "plane"
    stride = 0
    all_queries = all_keys = True

    @classmethod
    def fitting(cls, width: int, dilation: int, reach: int, extent: Extent) -> PlaneClasses:
        """The order with the tiles that compute windows of `reach` places with the least work."""
        rows, columns = _class_sides(width, dilation, extent)

        def work(size: int, tile: int) -> float:
            th, tw = tile_shape(size, rows, columns)
            tiles = -(-rows // th) * -(-columns // tw)
            return tiles * min(tiles, interior_tiles((th, tw), reach)) * tile

        return cls(width, dilation, extent.tiling.cheapest(work))

    @property
    def rank(self):
        return 0, -self.dilation

    def tiles(self, extent):
        tile = tile_shape(self.size, *_class_sides(self.width, self.dilation, extent))
        rest = extent.k_len, self.width, self.dilation, tile, extent.device
        return plane_tiles(extent.first, *rest), plane_tiles(0, *rest)


def _class_sides(width: int, dilation: int, extent: Extent) -> tuple[int, int]:
    """Rows and columns of a class of a plane, as far as there are keys."""
    rows, columns = math.ceil(extent.k_len / width), min(width, extent.k_len)
    return math.ceil(rows / dilation), math.ceil(columns / dilation)


def plane_tiles(first: int, stop: int, width: int, dilation: int, tile: tuple[int, int], device: torch.device) -> Tiles:
    """Positions [first, stop) of a grid in tiles of th x tw places of one class; tiles without a token are left out."""
    (th, tw), d = tile, dilation
    top = first // width // (d * th)  # the first row of tiles
    down = math.ceil(math.ceil(stop / width) / (d * th)) - top
    across = math.ceil(min(width, stop) / (d * tw))
    check_tile_count(d * d * down * across)

    def axis(count: int, begin: int = 0) -> Tensor:
        return torch.arange(begin, begin + count, device=device)

    a, ty, tx = torch.meshgrid(axis(d * d), axis(down, top), axis(across), indexing="ij")
    place = torch.stack([a.flatten(), ty.flatten() * th, tx.flatten() * tw], 1)
    r = (place[:, :1] // d) + d * (place[:, 1:2] + axis(th))  # [tiles, th]
    c = (place[:, :1] % d) + d * (place[:, 2:] + axis(tw))  # [tiles, tw]
    positions = (r[:, :, None] * width + c[:, None, :]).flatten(1)
    outside = (c >= width)[:, None, :].expand(-1, th, -1).flatten(1)
    positions = torch.where(outside | (positions < first) | (positions >= stop), PAD, positions)
    kept = (positions != PAD).any(1)
    table = torch.full((len(kept),), -1, dtype=torch.int64, device=device)
    table[kept] = axis(int(kept.sum()))
    plane = Plane(width, d, tile, table.view(d * d, down, across), place[kept])
    return Tiles(positions[kept], th * tw, False, group=place[kept, 0], plane=plane)


def tile_shape(size: int, rows: int, columns: int) -> tuple[int, int]:
    """(th, tw) of a tile of `size` places, a power of two, near a square unless the class is smaller than that."""
    tw = 1 << (size.bit_length() // 2)
    tw = min(tw, power_of_two(columns))
    th = min(size // tw, power_of_two(rows))
    return th, size // th


def power_of_two(n: int) -> int:
    """The smallest power of two that is no less than n."""
    return 1 << max(0, n - 1).bit_length()


def interior_tiles(tile: tuple[int, int], reach: int) -> int:
    """Key tiles that a query tile visits far from the edges."""
    th, tw = tile
    return ((th - 1 + reach) // th - -reach // th + 1) * ((tw - 1 + reach) // tw - -reach // tw + 1)
