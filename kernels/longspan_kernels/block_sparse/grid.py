"""Token orders cut into tiles: the natural order, the residue classes of a stride, and listed positions.

Legend: a tile is `block` consecutive places of an order; a place holds an original position or PAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longspan_kernels.errors import KernelError

PAD = -(1 << 40)  # no token; negative positions are real where Tq > Tk
FAR = 1 << 38  # beyond any distance between positions
INSIDE, OUTSIDE = -(1 << 41), -(1 << 42)  # below any position
MOST_TILES = 40_000_000  # of one component; compiling takes about 150 bytes for each


def check_tile_count(count: int) -> None:
    """Raises KernelError before a list of `count` tiles is made, where that is too many."""
    if count > MOST_TILES:
        raise KernelError(
            f"the pattern reaches into {count:,} tiles at this length, and a layout lists at most {MOST_TILES:,}; give a "
            "shorter length, a pattern with fewer keys a query (such as Local, BigBird or a larger stride), or larger blocks"
        )


@dataclass(frozen=True)
class Plane:
    """How the tiles of an order lie in a grid; see plane.py.

    Attributes:
        width, dilation: W and d.
        tile: (th, tw).
        table: [d * d, tile rows, tile columns] int64, the number of each tile, -1 where none was made; its rows begin with
            the first that holds a token.
        place: [tiles, 3] int64: the class and the first place (y, x) of each tile.
    """

    width: int
    dilation: int
    tile: tuple[int, int]
    table: Tensor
    place: Tensor


@dataclass
class Tiles:
    """An order cut into tiles.

    Attributes:
        positions: [count, block] int64, original position of each place, PAD for none; ascending bases within a group.
        block: places a tile.
        natural: whether place p holds position `start + p`, so that kernels need no index.
        start: the first position of tile 0 in the natural order (a multiple of `block`, so that tiles of queries and
            keys line up with a pattern's blocks whatever Tk - Tq is).
        group: [count] int64; only tiles of equal group can hold live pairs (the residue class), all 0 where not used.
        plane: how the tiles lie in a grid, where the order is one of a plane.
    """

    positions: Tensor
    block: int
    natural: bool
    start: int = 0
    group: Tensor | None = None
    plane: Plane | None = None
    base: Tensor = field(init=False)
    span: int = field(init=False)
    shape_id: Tensor = field(init=False)

    def __post_init__(self):
        valid = self.positions != PAD
        self.base = torch.where(valid, self.positions, FAR).amin(1)
        last = self.positions.amax(1)
        self.span = int((last - self.base).clamp(min=0).max()) if len(self.base) else 0
        relative = torch.where(valid, self.positions - self.base[:, None], -1)
        self.shape_id = torch.unique(hash_rows(relative), return_inverse=True)[1]

    @property
    def count(self) -> int:
        return self.positions.shape[0]

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def tile_of(self, position: Tensor) -> Tensor:
        """The tile of a position, in the natural order."""
        return (position - self.start) // self.block

    def index(self, origin: int) -> Tensor | None:
        """[count * block] int32 rows (position - origin) by place, -1 for none; None in the natural order."""
        if self.natural:
            return None
        flat = self.positions.flatten()
        return torch.where(flat == PAD, -1, flat - origin).int()


class PositionSet:
    """Half-open position ranges, sorted and disjoint, kept as tensors for look-ups on any device."""

    def __init__(self, ranges: Sequence[tuple[int, int]]):
        merged: list[list[int]] = []
        for start, stop in sorted((a, b) for a, b in ranges if b > a):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], stop)
            else:
                merged.append([start, stop])
        self.ranges = tuple((a, b) for a, b in merged)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def _edges(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on:
            starts = torch.tensor([a for a, _ in self.ranges], dtype=torch.int64, device=device)
            stops = torch.tensor([b for _, b in self.ranges], dtype=torch.int64, device=device)
            self._on[device] = starts, stops
        return self._on[device]

    def _more_begin(self, by: Tensor, than_end_by: Tensor) -> Tensor:
        """Whether more ranges begin at or before one position than end at or before another."""
        starts, stops = self._edges(by.device)
        begun = torch.searchsorted(starts, by.contiguous(), right=True)
        return begun > torch.searchsorted(stops, than_end_by.contiguous(), right=True)

    def contains(self, x: Tensor) -> Tensor:
        return self._more_begin(x, x)

    def touches(self, first: Tensor, last: Tensor) -> Tensor:
        """Whether any position of the set lies in [first, last]."""
        return self._more_begin(last, first)

    def positions(self, lo: int, hi: int, device: torch.device) -> Tensor:
        """The members in [lo, hi), ascending."""
        parts = [torch.arange(max(a, lo), min(b, hi), device=device) for a, b in self.ranges if max(a, lo) < min(b, hi)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=device)

    def signature(self, x0: Tensor, span: int) -> list[Tensor]:
        # A tile that touches no range, or lies inside one, looks like every other such tile.
        inside, touched = self._more_begin(x0, x0 + span), self.touches(x0, x0 + span)
        return [torch.where(touched, torch.where(inside, INSIDE, x0), OUTSIDE)]


def equal_steps(ranges: Sequence[tuple[int, int]]) -> tuple[int, int, int, int] | None:
    """(step, run, first, count) of ascending ranges that have equal lengths and distances; None for others, and for one."""
    if len(ranges) < 2:
        return None
    (first, stop), (second, _) = ranges[:2]
    step, run = second - first, stop - first
    if step <= run:
        return None
    even = all(start == first + n * step and end == start + run for n, (start, end) in enumerate(ranges))
    return (step, run, first, len(ranges)) if even else None


def natural_tiles(first: int, stop: int, block: int, device: torch.device) -> Tiles:
    """Positions [first, stop) in their own order; tiles start at multiples of `block`."""
    start = first // block * block
    count = -(-(stop - start) // block)
    positions = start + torch.arange(count * block, device=device)
    positions = torch.where((positions < first) | (positions >= stop), PAD, positions)
    return Tiles(positions.view(count, block), block, True, start)


def residue_tiles(first: int, stop: int, stride: int, block: int, length: int, device: torch.device) -> Tiles:
    """Positions [first, stop) class by class of `stride`; classes of at most block / 2 tokens share a tile.

    `length` is the longer class length of queries and keys: both sides must share tiles in the same way.
    """
    anchor = first // stride * stride
    if length * 2 > block:
        own = -(-(stop - anchor) // stride)  # tokens a class
        steps = -(-own // block)
        place = torch.arange(steps * block, device=device).view(1, steps, block)
        residue = torch.arange(stride, device=device).view(stride, 1, 1)
        positions = (anchor + residue + stride * place).view(stride * steps, block)
        group = torch.arange(stride, device=device).repeat_interleave(steps)
    else:
        packed = block // length
        count = -(-stride // packed)
        m = torch.arange(block, device=device)
        residue = torch.arange(count, device=device)[:, None] * packed + m // length
        positions = anchor + residue + stride * (m % length)
        positions = torch.where((m < packed * length) & (residue < stride), positions, PAD)
        group = torch.arange(count, device=device)
    positions = torch.where((positions < first) | (positions >= stop), PAD, positions)
    return Tiles(positions, block, False, group=group)


def listed_tiles(positions: Tensor, block: int) -> Tiles:
    """Chosen positions [n] int64, ascending, gathered into a short dense order."""
    count = max(1, -(-len(positions) // block))
    padded = torch.full((count * block,), PAD, dtype=torch.int64, device=positions.device)
    padded[: len(positions)] = positions
    return Tiles(padded.view(count, block), block, False)


def band_pairs(q: Tiles, k: Tiles, lo: int | None, hi: int | None) -> tuple[Tensor, Tensor]:
    """(rows, columns) of the tiles of equal group that may hold lo <= i - j <= hi."""
    first, stop = band_ranges(q, k, lo, hi)
    rows, place = numbered((stop - first).clamp(min=0))
    return rows, first[rows] + place


def numbered(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles, counts[n] of them for each n: the n of each, and its number among those of its n."""
    check_tile_count(int(counts.sum()))
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return owner, torch.arange(len(owner), device=counts.device) - (torch.cumsum(counts, 0) - counts)[owner]


def band_ranges(q: Tiles, k: Tiles, lo: int | None, hi: int | None) -> tuple[Tensor, Tensor]:
    """For each query tile the half-open range of key tiles that may hold lo <= i - j <= hi."""
    low = q.base - hi - k.span if hi is not None else torch.full_like(q.base, -FAR)
    high = q.base + q.span - lo if lo is not None else torch.full_like(q.base, FAR)
    order, q_group = k.base, torch.zeros_like(q.base)
    if q.group is not None and k.group is not None:
        order, q_group = k.base + k.group * (4 * FAR), q.group * (4 * FAR)
    first = torch.searchsorted(order, q_group + low.clamp(-FAR, FAR))
    stop = torch.searchsorted(order, q_group + high.clamp(-FAR, FAR), right=True)
    return first, stop


def pairs_in_band(q: Tiles, k: Tiles, rows: Tensor, columns: Tensor, lo: int | None, hi: int | None):
    """The pairs among (rows, columns) that may hold lo <= i - j <= hi."""
    distance = q.base[rows] - k.base[columns]
    keep = torch.ones_like(distance, dtype=torch.bool)
    if lo is not None:
        keep &= distance + q.span >= lo
    if hi is not None:
        keep &= distance - k.span <= hi
    if q.group is not None and k.group is not None:
        keep &= q.group[rows] == k.group[columns]
    return rows[keep], columns[keep]


def in_bounds(x: Tensor, lo: int | None, hi: int | None) -> Tensor:
    """Whether lo <= x <= hi; None leaves a side open."""
    out = torch.ones_like(x, dtype=torch.bool)
    if lo is not None:
        out &= x >= lo
    if hi is not None:
        out &= x <= hi
    return out


def all_pairs(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Each row with each column."""
    check_tile_count(len(rows) * len(columns))
    return rows.repeat_interleave(len(columns)), columns.repeat(len(rows))


def unique_pairs(rows: Tensor, columns: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Each (row, column) once, ascending."""
    flat = torch.unique(rows * width + columns)
    return flat // width, flat % width


def tighten(a: tuple[int | None, int | None], b: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """The intersection of two bands."""
    lo = a[0] if b[0] is None else b[0] if a[0] is None else max(a[0], b[0])
    hi = a[1] if b[1] is None else b[1] if a[1] is None else min(a[1], b[1])
    return lo, hi


def hash_rows(table: Tensor) -> Tensor:
    """[n, m] int64 -> [n] int64: equal rows hash alike; unequal ones collide with a chance of about 2**-63."""
    # Weights from a fixed linear congruential sequence: the same on every machine.
    weights, seed = [], 0x9E3779B97F4A7C15
    for _ in range(table.shape[1]):
        seed = (seed * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        weights.append(((seed ^ (seed >> 29)) | 1) - (1 << 63))
    weight = torch.tensor(weights, dtype=torch.int64, device=table.device) | 1
    return (table * weight).sum(1)
