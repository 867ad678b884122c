"""Rules: which (query, key) pairs are live, as boolean expressions over a few atoms.

A rule works in key coordinates: `i` is a query position, `j` a key position, and query row `r` of a call with Tq queries
and Tk keys is at i = r + Tk - Tq. It answers without Tq * Tk memory.

Signatures make layouts cheap: tiles of one shape with equal signatures have equal masks, and a tile is evaluated once for
each distinct signature, so that a shift-invariant pattern evaluates a handful of tiles at any length.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

import torch
from torch import Tensor

from longspan_kernels.block_sparse.grid import (
    PositionSet,
    Tiles,
    all_pairs,
    band_pairs,
    equal_steps,
    in_bounds,
    pairs_in_band,
    tighten,
    unique_pairs,
)
from longspan_kernels.block_sparse.orders import Extent, GatheredKeys, GatheredQueries, Order, PeriodicKeys, Residues

Pairs = tuple[Tensor, Tensor]
MOST_TERMS = 24


@dataclass(frozen=True)
class Traits:
    """The properties of a rule that decide how it is planned.

    Attributes:
        grows: a query sees more keys the longer the sequence is, as far as the rule knows.
        fills: every pair inside `band()` is live.
        listed: `tiles` names fewer tiles than the band reaches.
        block: the smallest block of positions that the rule is about, None where it is about none.
        asks_user: a user's function decides, and may decide otherwise tomorrow.
    """

    grows: bool
    fills: bool
    listed: bool
    block: int | None = None
    asks_user: bool = False


class Rule(ABC):
    """A set of live pairs; immutable, combined with `|`, `&` and `~`.

    A subclass answers everything that compilers ask; one that leaves a question out cannot be made.
    """

    per_head: bool  # whether `live` depends on the head

    @abstractmethod
    def live(self, h: Tensor | int, i: Tensor, j: Tensor) -> Tensor:
        """Whether pairs live: bool, elementwise over broadcast int64 tensors."""

    @abstractmethod
    def signature(self, h: Tensor, i0: Tensor, j0: Tensor, q: Tiles, k: Tiles) -> list[Tensor] | None:
        """Int64 columns with one value a tile; None where only evaluating a tile tells it from others."""

    @abstractmethod
    def traits(self) -> Traits:
        """What decides how the rule is planned."""

    def terms(self) -> list[Rule]:
        """The rule as a union of intersections; a single one where that would be too many."""
        return [self]

    def conjuncts(self) -> tuple[Rule, ...]:
        """The rules whose intersection this one is."""
        return (self,)

    def disjuncts(self) -> tuple[Rule, ...]:
        """The rules whose union this one is."""
        return (self,)

    @abstractmethod
    def orders(self, extent: Extent) -> list[Order]:
        """Token orders other than the natural one in which its pairs lie close together."""

    @abstractmethod
    def tiles(self, h: int, q: Tiles, k: Tiles, lo: int | None, hi: int | None) -> Pairs:
        """Candidate tiles (rows, columns) among those that touch lo <= i - j <= hi; `band_pairs` names them all."""

    @abstractmethod
    def band(self) -> tuple[int | None, int | None]:
        """Bounds that hold for i - j of every live pair, None where there is none."""

    def __and__(self, other: Rule) -> Rule:
        return And(self, other)

    def __or__(self, other: Rule) -> Rule:
        return Or(self, other)

    def __invert__(self) -> Rule:
        return Not(self)


class Unbounded(Rule):
    """A rule that bounds no distance: any tile may hold its pairs, unless a subclass knows better."""

    per_head = False

    def band(self):
        return None, None

    def tiles(self, h, q, k, lo, hi):
        return band_pairs(q, k, lo, hi)

    def orders(self, extent):
        return []


class Band(Rule):
    """lo <= i - j <= hi; None leaves a side open."""

    per_head = False

    def __init__(self, lo: int | None, hi: int | None):
        self.lo, self.hi = lo, hi

    def live(self, h, i, j):
        return in_bounds(i - j, self.lo, self.hi)

    def signature(self, h, i0, j0, q, k):
        return self.distances(i0 - j0, q.span, k.span)

    def distances(self, d: Tensor, q_span: int, k_span: int) -> list[Tensor]:
        """d, as far as it matters to tiles whose distances lie in [d - k_span, d + q_span]."""
        columns = []
        if self.lo is not None:
            columns.append(d.clamp(self.lo - q_span - 1, self.lo + k_span))
        if self.hi is not None:
            columns.append(d.clamp(self.hi - q_span, self.hi + k_span + 1))
        return columns

    def band(self):
        return self.lo, self.hi

    def tiles(self, h, q, k, lo, hi):
        return band_pairs(q, k, *tighten((lo, hi), self.band()))

    def orders(self, extent):
        return []

    def traits(self):
        return Traits(grows=None in (self.lo, self.hi), fills=True, listed=False)


class Everything(Band):
    """Every pair."""

    def __init__(self):
        super().__init__(None, None)


class Congruent(Unbounded):
    """(i - j) % stride == 0."""

    def __init__(self, stride: int):
        self.stride = stride

    def live(self, h, i, j):
        return (i - j) % self.stride == 0

    def signature(self, h, i0, j0, q, k):
        return [(i0 - j0) % self.stride]

    def traits(self):
        return Traits(grows=True, fills=False, listed=False)

    def orders(self, extent):
        return [Residues.fitting(self.stride, extent)] if 1 < self.stride < extent.k_len else []


class Members(Unbounded):
    """One position of a pair lies in one of the half-open `ranges`."""

    def __init__(self, ranges: Sequence[tuple[int, int]]):
        self.set = PositionSet(ranges)

    def traits(self):
        return Traits(grows=False, fills=False, listed=True)

    def tiles_of(self, q: Tiles, k: Tiles, rows: Tensor, columns: Tensor, lo: int | None, hi: int | None) -> Pairs:
        """Candidate tiles, given which query tiles [rows] and key tiles [columns] touch the set."""
        if lo is not None and hi is not None:
            row, column = band_pairs(q, k, lo, hi)
            keep = rows[row] & columns[column]
            return row[keep], column[keep]
        return pairs_in_band(q, k, *all_pairs(rows.nonzero().flatten(), columns.nonzero().flatten()), lo, hi)


class Keys(Members):
    """j lies in one of the half-open `ranges`.

    `named` are the ranges at all lengths, where `ranges` are cut at one length; kernels are chosen by their `steps`.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], named: Sequence[tuple[int, int]] | None = None):
        super().__init__(ranges)
        self.steps = equal_steps(self.set.ranges if named is None else named)

    def live(self, h, i, j):
        return self.set.contains(j).expand(torch.broadcast_shapes(i.shape, j.shape))

    def signature(self, h, i0, j0, q, k):
        return self.set.signature(j0, k.span)

    def orders(self, extent):
        return [GatheredKeys(self.set.ranges, self.steps)] if self.set.ranges else []

    def tiles(self, h, q, k, lo, hi):
        return self.tiles_of(q, k, torch.ones_like(q.base, dtype=torch.bool), self.set.touches(k.base, k.base + k.span), lo, hi)


class Queries(Members):
    """i lies in one of the half-open `ranges`."""

    def live(self, h, i, j):
        return self.set.contains(i).expand(torch.broadcast_shapes(i.shape, j.shape))

    def signature(self, h, i0, j0, q, k):
        return self.set.signature(i0, q.span)

    def orders(self, extent):
        return [GatheredQueries(self.set.ranges)] if self.set.ranges else []

    def tiles(self, h, q, k, lo, hi):
        return self.tiles_of(q, k, self.set.touches(q.base, q.base + q.span), torch.ones_like(k.base, dtype=torch.bool), lo, hi)


class KeysPeriodic(Unbounded):
    """j % stride >= stride - last: the summary columns of Sparse Transformer's fixed pattern."""

    def __init__(self, stride: int, last: int):
        self.stride, self.last = stride, last

    def live(self, h, i, j):
        return (j % self.stride >= self.stride - self.last).expand(torch.broadcast_shapes(i.shape, j.shape))

    def signature(self, h, i0, j0, q, k):
        return [j0 % self.stride]

    def traits(self):
        return Traits(grows=True, fills=False, listed=False)

    def orders(self, extent):
        return [PeriodicKeys(self.stride, self.last)] if self.last < self.stride else []


class Arbitrary(Unbounded):
    """Any elementwise function `fn(h, i, j)` of broadcast int64 tensors."""

    def __init__(self, fn, per_head: bool = True):
        self.fn, self.per_head = fn, per_head

    def live(self, h, i, j):
        return self.fn(h, i, j)

    def signature(self, h, i0, j0, q, k):
        return None

    def traits(self):
        return Traits(grows=False, fills=False, listed=False, asks_user=True)


class Composed(Rule):
    """A rule made of others."""

    def __init__(self, parts: Sequence[Rule]):
        self.parts = tuple(parts)
        self.per_head = any(part.per_head for part in parts)

    def signature(self, h, i0, j0, q, k):
        columns: list[Tensor] = []
        for part in self.parts:
            found = part.signature(h, i0, j0, q, k)
            if found is None:
                return None
            columns += found
        return columns


class And(Composed):
    """The pairs of every part."""

    def __init__(self, *parts: Rule):
        super().__init__([own for part in parts for own in part.conjuncts()])

    def live(self, h, i, j):
        return reduce(and_, (part.live(h, i, j) for part in self.parts))

    def traits(self):
        each = [part.traits() for part in self.parts]
        grows = None in self.band() and all(part.grows for part in each)
        fills, listed = all(part.fills for part in each), any(part.listed for part in each)
        return Traits(grows, fills, listed, *_of_any(each))

    def terms(self):
        spread = [part.terms() for part in self.parts]
        if math.prod(map(len, spread)) > MOST_TERMS:
            return [self]
        return [And(*chosen) if len(chosen) > 1 else chosen[0] for chosen in itertools.product(*spread)]

    def conjuncts(self):
        return self.parts

    def orders(self, extent):
        return [order for part in self.parts for order in part.orders(extent)]

    def band(self):
        return reduce(tighten, (part.band() for part in self.parts))

    def tiles(self, h, q, k, lo, hi):
        band = tighten((lo, hi), self.band())
        # Parts that only repeat the band add nothing; of the rest, and of unions, the shortest candidate list will do.
        listing = [part for part in self.parts if part.traits().listed or len(part.disjuncts()) > 1]
        found = [p.tiles(h, q, k, *band) for p in listing]
        return min(found, key=lambda pair: pair[0].numel()) if found else band_pairs(q, k, *band)


class Or(Composed):
    """The pairs of any part."""

    def __init__(self, *parts: Rule):
        super().__init__([own for part in parts for own in part.disjuncts()])

    def live(self, h, i, j):
        return reduce(or_, (part.live(h, i, j) for part in self.parts))

    def traits(self):
        each = [part.traits() for part in self.parts]
        return Traits(any(part.grows for part in each), False, False, *_of_any(each))

    def terms(self):
        return [term for part in self.parts for term in part.terms()]

    def disjuncts(self):
        return self.parts

    def orders(self, extent):
        return []  # its terms offer their own

    def band(self):
        los, his = zip(*(part.band() for part in self.parts), strict=True)
        return None if None in los else min(los), None if None in his else max(his)

    def tiles(self, h, q, k, lo, hi):
        found = [part.tiles(h, q, k, lo, hi) for part in self.parts]
        if len(found) == 1:
            return found[0]
        return unique_pairs(torch.cat([r for r, _ in found]), torch.cat([c for _, c in found]), k.count)


class Not(Unbounded):
    """The pairs that a rule leaves out."""

    def __init__(self, part: Rule):
        self.part, self.per_head = part, part.per_head

    def live(self, h, i, j):
        return ~self.part.live(h, i, j)

    def signature(self, h, i0, j0, q, k):
        return self.part.signature(h, i0, j0, q, k)

    def traits(self):
        return Traits(True, False, False, *_of_any([self.part.traits()]))


def _of_any(parts: Sequence[Traits]) -> tuple[int | None, bool]:
    """(block, asks_user) of a rule composed of others."""
    blocks = [part.block for part in parts if part.block is not None]
    return min(blocks, default=None), any(part.asks_user for part in parts)
