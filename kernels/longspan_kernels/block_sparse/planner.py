"""From a rule to a layout: which parts of a pattern are cheap in which token order.

A rule is brought to a union of intersections of atoms. Each intersection (term) may be visited
- in natural order, or
- class by class of a stride, where it demands (i - j) % stride == 0, or
- over its keys gathered into a short list, where it demands j to be in a set, or
- over its queries gathered, where it demands i to be in a set.
A term leaves the natural order only where that visits clearly fewer pairs. Terms of one order form one component; each
component masks out, by original positions, what earlier components hold, so that their log-sum-exps merge exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longspan_kernels.block_sparse.grid import Order, Tiles, band_ranges, listed_tiles, natural_tiles, residue_tiles
from longspan_kernels.block_sparse.layout import Compiler, Layout
from longspan_kernels.block_sparse.rules import And, Everything, Not, Or, Rule

PAYS = 0.75  # an order other than the natural one must visit at most this share of its pairs
LATER = {"residue": 0, "keys": 1, "natural": 2, "queries": 3}  # the order in which components run

HeadRules = Sequence[tuple[tuple[int, ...], Rule]]


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


class Planner:
    """Builds the tiles of each order once, for one call of `compile_layout`."""

    def __init__(self, q_len: int, k_len: int, tiling: Tiling, device: torch.device):
        self.q_len, self.k_len, self.tiling, self.device = q_len, k_len, tiling, device
        self.first = k_len - q_len
        self._sides: dict[tuple, tuple[Tiles, Tiles]] = {}

    def sides(self, order: Order) -> tuple[Tiles, Tiles]:
        key = (order.kind, order.stride, order.size, order.positions)
        if key not in self._sides:
            self._sides[key] = self._build(order)
        return self._sides[key]

    def _build(self, order: Order) -> tuple[Tiles, Tiles]:
        t, device = self.tiling, self.device
        if order.kind == "residue":
            length = self.class_length(order.stride)
            return (
                residue_tiles(self.first, self.k_len, order.stride, order.size, length, device),
                residue_tiles(0, self.k_len, order.stride, order.size, length, device),
            )
        q = natural_tiles(self.first, self.k_len, t.block_q, device)
        k = natural_tiles(0, self.k_len, t.block_k, device)
        if order.kind == "keys":
            k = listed_tiles(order.positions_in(0, self.k_len, device), t.block_k)
        elif order.kind == "queries":
            q = listed_tiles(order.positions_in(self.first, self.k_len, device), t.block_q)
        return q, k

    def class_length(self, stride: int) -> int:
        start = self.first // stride * stride
        return max(-(-(self.k_len - start) // stride), -(-self.k_len // stride))

    def class_tile(self, stride: int) -> int:
        """The tile side that computes a stride's classes with the least work."""
        length = self.class_length(stride)

        def work(size: int) -> float:
            tiles = -(-length // size)
            if length * 2 <= size:
                return (size * size + self.tiling.overhead) / (size // length)
            return tiles * tiles * (size * size + self.tiling.overhead)

        return min(self.tiling.sizes, key=work)

    def visited(self, term: Rule, order: Order, head: int) -> int:
        """Pairs that visiting a term in an order would compute, for one head."""
        q, k = self.sides(order)
        if term.traits().listed:
            tiles = len(term.tiles(head, q, k, None, None)[0])
        else:
            first, stop = band_ranges(q, k, *term.band())
            tiles = int((stop - first).clamp(min=0).sum())
        return tiles * (q.block * k.block)

    def choose(self, term: Rule, head: int) -> Order:
        """The cheapest order of one term."""
        natural = Order("natural")
        if self.tiling.one_pass:
            return natural
        options = [order for part in term.conjuncts() for order in part.orders(self.k_len, self.class_tile)]
        if not options:
            return natural
        best = min(options, key=lambda order: self.visited(term, order, head))
        pays = self.visited(term, best, head) <= PAYS * self.visited(term, natural, head)
        return best if pays else natural


def compile_layout(
    groups: HeadRules, q_len: int, k_len: int, heads: int, tiling: Tiling | None = None,
    device: torch.device | str = "cpu",
) -> Layout:  # fmt: skip
    """Compiles head rules (groups of heads that share a rule) into a layout on `device`."""
    device = torch.device(device)
    planner = Planner(q_len, k_len, tiling or Tiling(), device)
    # order -> [(heads, rule)], an order being shared by the groups that use it.
    plan: dict[Order, list[tuple[tuple[int, ...], Rule]]] = {}
    for members, rule in groups:
        by_order: dict[Order, list[Rule]] = {}
        for term in simplified(rule.terms()):
            by_order.setdefault(planner.choose(term, members[0]), []).append(term)
        taken: list[Rule] = []
        for order in sorted(by_order, key=lambda o: (LATER[o.kind], -o.stride)):
            own = by_order[order]
            part = own[0] if len(own) == 1 else Or(*own)
            if taken:
                part = And(part, *(Not(earlier) for earlier in taken))
            taken.append(part if not taken else (own[0] if len(own) == 1 else Or(*own)))
            plan.setdefault(order, []).append((members, part))
    components, live, visited = [], 0, 0
    written: set[int] = set()
    covered: set[int] = set()
    for order in sorted(plan, key=lambda o: (LATER[o.kind], -o.stride)):
        q, k = planner.sides(order)
        covers = order.kind != "queries"
        compiler = Compiler(q, k)
        head_group: dict[int, int] = {}
        for members, rule in plan[order]:
            head_group |= compiler.add(rule, members)
        component, pairs, tiles = compiler.finish(heads, head_group, planner.first, order.name, covers, set(written))
        component.k_len, component.even = k_len, order.even(k.block)
        component.grows = order.kind == "natural" and any(rule.traits().grows for _, rule in plan[order])
        for head in head_group:
            if head not in written and covers:
                covered.add(head)
        written |= set(head_group)
        components.append(component)
        live += pairs
        visited += tiles
    everywhere = covered == set(range(heads))
    if not everywhere:
        # The output starts as (0, -inf) and every component merges into it.
        for component in components:
            component.merge.fill_(1)
    return Layout(q_len, k_len, heads, components, live, visited, everywhere)


def simplified(terms: list[Rule]) -> list[Rule]:
    """Drops from intersections what keeps every pair; a term of nothing else swallows the rest."""
    out: list[Rule] = []
    for term in terms:
        parts = [part for part in term.conjuncts() if not (part.traits().fills and part.band() == (None, None))]
        if not parts:
            return [Everything()]
        out.append(And(*parts) if len(parts) > 1 else parts[0])
    return out


def dense(rule: Rule) -> bool:
    """Whether a query sees all keys, or all on one side of some place."""
    return None in rule.band() and rule.traits().fills
