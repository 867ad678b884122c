"""Which (query, key) pairs are live, as boolean expressions over a few atoms.

A rule works in key coordinates: `i` is a query position, `j` a key position, and query row `r` of a call with Tq queries
and Tk keys is at i = r + Tk - Tq. A rule answers three questions, none of which needs Tq * Tk memory:

- `live(h, i, j)`: the definition, elementwise over broadcast int64 tensors;
- `tiles(h, q, k, lo, hi)`: which tiles of two token orders may hold a live pair (a superset);
- `signature(h, i0, j0, q, k)`: numbers such that two tiles of the same shape with equal numbers have equal masks.

The signature is what makes layouts cheap: a tile is evaluated once for each distinct signature, so that a shift-invariant
pattern evaluates a handful of tiles at any length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan_kernels.block_sparse.grid import Tiles, all_pairs, band_pairs, pairs_in_band, unique_pairs

Pairs = tuple[Tensor, Tensor]
INSIDE, OUTSIDE = -(1 << 41), -(1 << 42)  # below any position


class Rule:
    """A set of live pairs; immutable, combined with `|`, `&` and `~`."""

    per_head = False  # whether `live` depends on the head

    def live(self, h: Tensor | int, i: Tensor, j: Tensor) -> Tensor:
        raise NotImplementedError

    def signature(self, h: Tensor, i0: Tensor, j0: Tensor, q: Tiles, k: Tiles) -> list[Tensor] | None:
        """Int64 columns, one value a tile, or None where nothing cheaper than the tile itself tells it apart."""
        raise NotImplementedError

    def tiles(self, h: int, q: Tiles, k: Tiles, lo: int | None, hi: int | None) -> Pairs:
        """Candidate tiles (rows, columns) among those that touch lo <= i - j <= hi."""
        return band_pairs(q, k, lo, hi)

    def band(self) -> tuple[int | None, int | None]:
        """Bounds that hold for i - j of every live pair."""
        return None, None

    def __and__(self, other: Rule) -> Rule:
        return And(self, other)

    def __or__(self, other: Rule) -> Rule:
        return Or(self, other)

    def __invert__(self) -> Rule:
        return Not(self)


class Everything(Rule):
    def live(self, h, i, j):
        return torch.ones(torch.broadcast_shapes(i.shape, j.shape), dtype=torch.bool, device=i.device)

    def signature(self, h, i0, j0, q, k):
        return []


class Band(Rule):
    """lo <= i - j <= hi; None leaves a side open."""

    def __init__(self, lo: int | None, hi: int | None):
        self.lo, self.hi = lo, hi

    def live(self, h, i, j):
        distance = i - j
        out = torch.ones_like(distance, dtype=torch.bool)
        if self.lo is not None:
            out &= distance >= self.lo
        if self.hi is not None:
            out &= distance <= self.hi
        return out

    def signature(self, h, i0, j0, q, k):
        # Distances inside the tile lie in [d - k.span, d + q.span]: past those, d no longer matters.
        d = i0 - j0
        columns = []
        if self.lo is not None:
            columns.append(d.clamp(self.lo - q.span - 1, self.lo + k.span))
        if self.hi is not None:
            columns.append(d.clamp(self.hi - q.span, self.hi + k.span + 1))
        return columns

    def band(self):
        return self.lo, self.hi

    def tiles(self, h, q, k, lo, hi):
        return band_pairs(q, k, *tighten((lo, hi), self.band()))


class Congruent(Rule):
    """(i - j) % stride == 0."""

    def __init__(self, stride: int):
        self.stride = stride

    def live(self, h, i, j):
        return (i - j) % self.stride == 0

    def signature(self, h, i0, j0, q, k):
        return [(i0 - j0) % self.stride]


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

    def contains(self, x: Tensor) -> Tensor:
        starts, stops = self._edges(x.device)
        return torch.searchsorted(starts, x.contiguous(), right=True) > torch.searchsorted(stops, x.contiguous(), right=True)

    def touches(self, first: Tensor, last: Tensor) -> Tensor:
        """Whether any position of the set lies in [first, last]."""
        starts, stops = self._edges(first.device)
        return torch.searchsorted(starts, last.contiguous(), right=True) > torch.searchsorted(
            stops, first.contiguous(), right=True
        )

    def positions(self, lo: int, hi: int, device: torch.device) -> Tensor:
        """The members in [lo, hi), ascending."""
        parts = [torch.arange(max(a, lo), min(b, hi), device=device) for a, b in self.ranges if max(a, lo) < min(b, hi)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=device)

    def signature(self, x0: Tensor, span: int) -> list[Tensor]:
        # A tile that touches no range, or lies inside one, looks like every other such tile.
        touched = self.touches(x0, x0 + span)
        starts, stops = self._edges(x0.device)
        inside = torch.searchsorted(starts, x0.contiguous(), right=True) > torch.searchsorted(
            stops, (x0 + span).contiguous(), right=True
        )
        seen = torch.where(inside, torch.full_like(x0, INSIDE), x0)
        return [torch.where(touched, seen, torch.full_like(x0, OUTSIDE))]


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


class Keys(Rule):
    """j lies in one of the half-open `ranges`.

    `named` are those of all lengths, where `ranges` are cut at one: `steps`, which kernels are chosen by, is of them.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], named: Sequence[tuple[int, int]] | None = None):
        self.set = PositionSet(ranges)
        self.steps = equal_steps(self.set.ranges if named is None else named)

    def live(self, h, i, j):
        return self.set.contains(j).expand(torch.broadcast_shapes(i.shape, j.shape))

    def signature(self, h, i0, j0, q, k):
        return self.set.signature(j0, k.span)

    def tiles(self, h, q, k, lo, hi):
        touched = self.set.touches(k.base, k.base + k.span)
        if lo is not None and hi is not None:
            rows, columns = band_pairs(q, k, lo, hi)
            return rows[touched[columns]], columns[touched[columns]]
        columns = touched.nonzero().flatten()
        return pairs_in_band(q, k, *all_pairs(torch.arange(q.count, device=q.device), columns), lo, hi)


class Queries(Rule):
    """i lies in one of the half-open `ranges`."""

    def __init__(self, ranges: Sequence[tuple[int, int]]):
        self.set = PositionSet(ranges)

    def live(self, h, i, j):
        return self.set.contains(i).expand(torch.broadcast_shapes(i.shape, j.shape))

    def signature(self, h, i0, j0, q, k):
        return self.set.signature(i0, q.span)

    def tiles(self, h, q, k, lo, hi):
        touched = self.set.touches(q.base, q.base + q.span)
        if lo is not None and hi is not None:
            rows, columns = band_pairs(q, k, lo, hi)
            return rows[touched[rows]], columns[touched[rows]]
        rows = touched.nonzero().flatten()
        return pairs_in_band(q, k, *all_pairs(rows, torch.arange(k.count, device=k.device)), lo, hi)


class KeysPeriodic(Rule):
    """j % stride >= stride - last: the summary columns of Sparse Transformer's fixed pattern."""

    def __init__(self, stride: int, last: int):
        self.stride, self.last = stride, last

    def live(self, h, i, j):
        return (j % self.stride >= self.stride - self.last).expand(torch.broadcast_shapes(i.shape, j.shape))

    def signature(self, h, i0, j0, q, k):
        return [j0 % self.stride]

    def positions(self, lo: int, hi: int, device: torch.device) -> Tensor:
        j = torch.arange(lo, hi, device=device)
        return j[j % self.stride >= self.stride - self.last]


class Arbitrary(Rule):
    """Any elementwise function `fn(h, i, j)` of broadcast int64 tensors."""

    def __init__(self, fn, per_head: bool = True):
        self.fn, self.per_head = fn, per_head

    def live(self, h, i, j):
        return self.fn(h, i, j)

    def signature(self, h, i0, j0, q, k):
        return None


class And(Rule):
    def __init__(self, *parts: Rule):
        self.parts: tuple[Rule, ...] = tuple(p for part in parts for p in (part.parts if isinstance(part, And) else (part,)))
        self.per_head = any(p.per_head for p in self.parts)

    def live(self, h, i, j):
        out = self.parts[0].live(h, i, j)
        for part in self.parts[1:]:
            out = out & part.live(h, i, j)
        return out

    def signature(self, h, i0, j0, q, k):
        return _joined(self.parts, h, i0, j0, q, k)

    def band(self):
        band: tuple[int | None, int | None] = (None, None)
        for part in self.parts:
            band = tighten(band, part.band())
        return band

    def tiles(self, h, q, k, lo, hi):
        band = tighten((lo, hi), self.band())
        # Parts that only repeat the band add nothing; of the rest the shortest candidate list will do.
        listing = [p for p in self.parts if not isinstance(p, (Everything, Band, Congruent, KeysPeriodic, Arbitrary, Not))]
        found = [p.tiles(h, q, k, *band) for p in listing]
        return min(found, key=lambda pair: pair[0].numel()) if found else band_pairs(q, k, *band)


class Or(Rule):
    def __init__(self, *parts: Rule):
        self.parts: tuple[Rule, ...] = tuple(p for part in parts for p in (part.parts if isinstance(part, Or) else (part,)))
        self.per_head = any(p.per_head for p in self.parts)

    def live(self, h, i, j):
        out = self.parts[0].live(h, i, j)
        for part in self.parts[1:]:
            out = out | part.live(h, i, j)
        return out

    def signature(self, h, i0, j0, q, k):
        return _joined(self.parts, h, i0, j0, q, k)

    def band(self):
        los, his = zip(*(part.band() for part in self.parts), strict=True)
        return (
            None if any(lo is None for lo in los) else min(los),
            None if any(hi is None for hi in his) else max(his),
        )

    def tiles(self, h, q, k, lo, hi):
        found = [part.tiles(h, q, k, lo, hi) for part in self.parts]
        if len(found) == 1:
            return found[0]
        return unique_pairs(torch.cat([r for r, _ in found]), torch.cat([c for _, c in found]), k.count)


class Not(Rule):
    def __init__(self, part: Rule):
        self.part, self.per_head = part, part.per_head

    def live(self, h, i, j):
        return ~self.part.live(h, i, j)

    def signature(self, h, i0, j0, q, k):
        return self.part.signature(h, i0, j0, q, k)


def atoms(rule: Rule) -> list[Rule]:
    """The rules that a rule is composed of."""
    if isinstance(rule, (And, Or)):
        return [atom for part in rule.parts for atom in atoms(part)]
    return atoms(rule.part) if isinstance(rule, Not) else [rule]


def tighten(a: tuple[int | None, int | None], b: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """The intersection of two bands."""
    lo = a[0] if b[0] is None else b[0] if a[0] is None else max(a[0], b[0])
    hi = a[1] if b[1] is None else b[1] if a[1] is None else min(a[1], b[1])
    return lo, hi


def _joined(parts, h, i0, j0, q, k) -> list[Tensor] | None:
    columns: list[Tensor] = []
    for part in parts:
        found = part.signature(h, i0, j0, q, k)
        if found is None:
            return None
        columns += found
    return columns
