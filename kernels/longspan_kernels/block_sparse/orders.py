"""Token orders in which a component may be visited, each cut into tiles of queries and of keys.

Rules offer orders (`Rule.orders`), the planner picks among them. The order of a plane's classes is in plane.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from longspan_kernels.block_sparse.grid import PositionSet, Tiles, listed_tiles, natural_tiles, residue_tiles


@dataclass(frozen=True)
class Tiling:
    """Tile sizes a backend wants.

    Attributes:
        block_q, block_k: the tile in natural order and over gathered keys.
        sizes: square tile sides to choose from for residue classes, whose length decides.
        overhead: pairs a tile costs beyond its own area, in favour of fewer, larger tiles.
        one_pass: keep everything in natural order (a per-block bias needs every block once).
    """

    block_q: int = 64
    block_k: int = 64
    sizes: tuple[int, ...] = (16, 32, 64, 128)
    overhead: int = 1024
    one_pass: bool = False

    def cheapest(self, work: Callable[[int, int], float]) -> int:
        """The size with the least `work(size, pairs that one tile of it costs)`."""
        return min(self.sizes, key=lambda size: work(size, size * size + self.overhead))


@dataclass(frozen=True)
class Extent:
    """The lengths and tile sizes that a layout is compiled for, and the device that it is compiled on."""

    q_len: int
    k_len: int
    tiling: Tiling
    device: torch.device

    @property
    def first(self) -> int:
        """The position of the first query."""
        return self.k_len - self.q_len

    def queries(self) -> Tiles:
        """The queries in natural order."""
        return natural_tiles(self.first, self.k_len, self.tiling.block_q, self.device)

    def keys(self) -> Tiles:
        """The keys in natural order."""
        return natural_tiles(0, self.k_len, self.tiling.block_k, self.device)


class Order(ABC):
    """A token order; immutable, and equal where its settings are.

    Attributes:
        stride: whose residue classes follow one another in the order, else 0.
        all_queries, all_keys: whether every query, and every key, has a place.
    """

    stride: int
    all_queries: bool
    all_keys: bool

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports and error messages call it."""

    @property
    @abstractmethod
    def rank(self) -> tuple[int, int]:
        """Components of a layout run in ascending rank."""

    @abstractmethod
    def tiles(self, extent: Extent) -> tuple[Tiles, Tiles]:
        """The tiles of queries and of keys."""

    def even(self, block: int) -> tuple[int, int, int] | None:
        """(step, run, first) where tiles of `block` keys consist of whole runs of equal lengths and distances, else None.

        The answer does not depend on the length of the sequence.
        """
        return None


@dataclass(frozen=True)
class Natural(Order):
    """Tokens as they come."""

    name = "natural"
    stride = 0
    all_queries = all_keys = True
    rank = (2, 0)

    def tiles(self, extent):
        return extent.queries(), extent.keys()


@dataclass(frozen=True)
class Residues(Order):
    """Class by class of `stride`: the tokens of equal position % stride, in tiles of `size` x `size`."""

    stride: int
    size: int
    all_queries = all_keys = True

    @classmethod
    def fitting(cls, stride: int, extent: Extent) -> Residues:
        """The order with the tile side that computes all classes with the least work."""
        length = _class_length(stride, extent)

        def work(size: int, tile: int) -> float:
            if length * 2 <= size:  # several classes share a tile
                return tile / (size // length)
            return (-(-length // size)) ** 2 * tile

        return cls(stride, extent.tiling.cheapest(work))

    @property
    def name(self):
        return f"residue {self.stride}"

    @property
    def rank(self):
        return 0, -self.stride

    def tiles(self, extent):
        length = _class_length(self.stride, extent)
        rest = extent.k_len, self.stride, self.size, length, extent.device
        return residue_tiles(extent.first, *rest), residue_tiles(0, *rest)


@dataclass(frozen=True)
class GatheredKeys(Order):
    """Queries in natural order, and the keys in `ranges` (half-open, ascending) gathered into a short list.

    `steps` is what `equal_steps` finds in the ranges of all lengths, of which `ranges` may be cut at one.
    """

    ranges: tuple[tuple[int, int], ...]
    steps: tuple[int, int, int, int] | None
    name = "keys"
    stride = 0
    all_queries, all_keys = True, False
    rank = (1, 0)

    def tiles(self, extent):
        positions = PositionSet(self.ranges).positions(0, extent.k_len, extent.device)
        return extent.queries(), listed_tiles(positions, extent.tiling.block_k)

    def even(self, block):
        if self.steps is None:
            return None
        step, run, first, count = self.steps
        # Keys that one tile holds gain nothing.
        return None if run * count <= block or block % run else (step, run, first)


@dataclass(frozen=True)
class PeriodicKeys(Order):
    """Queries in natural order, and the last `run` keys of every `step` gathered."""

    step: int
    run: int
    name = "keys"
    stride = 0
    all_queries, all_keys = True, False

    @property
    def rank(self):
        return 1, -self.step

    def tiles(self, extent):
        place = torch.arange(extent.k_len, device=extent.device)
        positions = place[place % self.step >= self.step - self.run]
        return extent.queries(), listed_tiles(positions, extent.tiling.block_k)

    def even(self, block):
        return None if block % self.run else (self.step, self.run, self.step - self.run)


@dataclass(frozen=True)
class GatheredQueries(Order):
    """The queries in `ranges` (half-open, ascending) gathered into a short list, and keys in natural order."""

    ranges: tuple[tuple[int, int], ...]
    name = "queries"
    stride = 0
    all_queries, all_keys = False, True
    rank = (3, 0)

    def tiles(self, extent):
        positions = PositionSet(self.ranges).positions(extent.first, extent.k_len, extent.device)
        return listed_tiles(positions, extent.tiling.block_q), extent.keys()


def _class_length(stride: int, extent: Extent) -> int:
    """Tokens of the longest class of a stride, of queries or of keys."""
    start = extent.first // stride * stride
    return max(-(-(extent.k_len - start) // stride), -(-extent.k_len // stride))
