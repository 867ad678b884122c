"""Compiles rules to layouts: each part of a pattern goes to the token order in which it is cheapest.

A rule is brought to a union of intersections of atoms. Each intersection (term) may be visited
- in natural order, or
- class by class of a stride, where it demands (i - j) % stride == 0, or
- in two-dimensional tiles, where it demands that i and j are neighbours in a plane, or
- over its keys gathered into a short list, where it demands j to be in a set, or
- over its queries gathered, where it demands i to be in a set.
A term leaves the natural order only where that visits clearly fewer pairs. Terms of one order form one component; each
component masks out, by original positions, what earlier components hold, so that their log-sum-exps merge exactly.

Legend: U distinct head groups of a component, n tiles of one side, `block_q` x `block_k` the tile, M distinct partial masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan_kernels.block_sparse.grid import PAD, Tiles, band_ranges, hash_rows
from longspan_kernels.block_sparse.layout import SENTINEL, Component, Layout, Lists
from longspan_kernels.block_sparse.orders import Extent, Natural, Order, Tiling
from longspan_kernels.block_sparse.rules import And, Everything, Not, Or, Rule

PAYS = 0.75  # an order other than the natural one must visit at most this share of its pairs
NATURAL = Natural()
EVALUATED_AT_ONCE = 1 << 24  # pairs
FEW_BANDS = 8  # that many times more tiles with other masks: kernels spare the loop over bands, and take their bits
DEAD = -2  # kind of a tile without a live pair

HeadRules = Sequence[tuple[tuple[int, ...], Rule]]


class Planner:
    """Chooses the order of each term, and builds the tiles of each order once."""

    def __init__(self, extent: Extent):
        self.extent = extent
        self._sides: dict[Order, tuple[Tiles, Tiles]] = {}

    def sides(self, order: Order) -> tuple[Tiles, Tiles]:
        if order not in self._sides:
            self._sides[order] = order.tiles(self.extent)
        return self._sides[order]

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
        offered = [] if self.extent.tiling.one_pass else term.orders(self.extent)
        if not offered:
            return NATURAL
        best = min(offered, key=lambda order: self.visited(term, order, head))
        pays = self.visited(term, best, head) <= PAYS * self.visited(term, NATURAL, head)
        return best if pays else NATURAL


def compile_layout(
    groups: HeadRules, q_len: int, k_len: int, heads: int, tiling: Tiling | None = None, device: torch.device | str = "cpu"
) -> Layout:
    """Compiles head rules (groups of heads that share a rule) into a layout on `device`."""
    device = torch.device(device)
    extent = Extent(q_len, k_len, tiling or Tiling(), device)
    planner = Planner(extent)
    # order -> [(heads, rule)], an order being shared by the groups that use it.
    plan: dict[Order, list[tuple[tuple[int, ...], Rule]]] = {}
    for members, rule in groups:
        by_order: dict[Order, list[Rule]] = {}
        for term in simplified(rule.terms()):
            by_order.setdefault(planner.choose(term, members[0]), []).append(term)
        taken: list[Rule] = []
        for order in sorted(by_order, key=lambda order: order.rank):
            own = by_order[order]
            whole = own[0] if len(own) == 1 else Or(*own)
            part = And(whole, *(Not(earlier) for earlier in taken)) if taken else whole
            taken.append(whole)
            plan.setdefault(order, []).append((members, part))
    components, live, visited = [], 0, 0
    written: set[int] = set()
    covered: set[int] = set()
    for order in sorted(plan, key=lambda order: order.rank):
        q, k = planner.sides(order)
        compiler = Compiler(q, k)
        head_group: dict[int, int] = {}
        for members, rule in plan[order]:
            head_group |= compiler.add(rule, members)
        component, pairs, tiles = compiler.finish(heads, head_group, extent.first, order, written)
        component.k_len = k_len
        component.grows = order == NATURAL and any(rule.traits().grows for _, rule in plan[order])
        if order.all_queries:
            covered |= head_group.keys() - written
        written |= head_group.keys()
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
    """Removes rules that keep every pair from intersections; a term with nothing else left replaces all terms."""
    out: list[Rule] = []
    for term in terms:
        parts = [part for part in term.conjuncts() if not (part.traits().fills and part.band() == (None, None))]
        if not parts:
            return [Everything()]
        out.append(And(*parts) if len(parts) > 1 else parts[0])
    return out


class Compiler:
    """Collects the tiles of one component over its head groups, and classifies each as dead, partial or full."""

    def __init__(self, q: Tiles, k: Tiles):
        self.q, self.k = q, k
        self.found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # group, row, column, kind (-1 full, else of masks)
        self.masks: list[Tensor] = []
        self.mask_count = 0
        self.live: list[int] = []  # per group
        self.visited: list[int] = []

    def add(self, rule: Rule, heads: tuple[int, ...]) -> dict[int, int]:
        """Adds a rule for some heads; returns the group of each head."""
        q, k = self.q, self.k
        served = heads if rule.per_head else heads[:1]
        base = len(self.live)
        found = [rule.tiles(head, q, k, None, None) for head in served]
        row, column = (torch.cat(parts) for parts in zip(*found, strict=True))
        group = torch.cat([torch.full_like(rows, base + offset) for offset, (rows, _) in enumerate(found)])
        head_of = torch.cat([torch.full_like(rows, head) for head, (rows, _) in zip(served, found, strict=True)])
        kind, live = self._classify(rule, head_of, row, column)
        keep = kind != DEAD
        group, row, column, kind, live = group[keep], row[keep], column[keep], kind[keep], live[keep]
        self.found.append((group, row, column, kind))
        area = q.block * k.block
        pairs = torch.zeros(len(served), dtype=torch.int64, device=row.device).index_add_(0, group - base, live)
        tiles = torch.zeros_like(pairs).index_add_(0, group - base, torch.ones_like(live))
        self.live += pairs.tolist()
        self.visited += [n * area for n in tiles.tolist()]
        if rule.per_head:
            return {head: base + offset for offset, head in enumerate(served)}
        return dict.fromkeys(heads, base)

    def _classify(self, rule: Rule, head: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """For each tile its kind (DEAD, -1 full, or a mask index) and its number of live pairs."""
        q, k = self.q, self.k
        if len(row) == 0:
            return row, row
        i0, j0 = q.base[row], k.base[column]
        signature = rule.signature(head, i0, j0, q, k)
        if signature is None:
            picks = which = torch.arange(len(row), device=row.device)
        else:
            picks, which = one_of_each(torch.stack([q.shape_id[row], k.shape_id[column], *signature], 1))
        kinds, lives = [], []
        step = max(1, EVALUATED_AT_ONCE // (q.block * k.block))
        for pick in picks.split(step):
            mask = evaluate_tiles(rule, head[pick], q.positions[row[pick]], k.positions[column[pick]])
            live = mask.sum((1, 2))
            kind = torch.full_like(live, DEAD)
            kind[live == q.block * k.block] = -1
            partial = ((live > 0) & (live < q.block * k.block)).nonzero().flatten()
            if len(partial):
                chosen, inverse = distinct_masks(mask[partial])
                kind[partial] = self.mask_count + inverse
                self.masks.append(chosen)
                self.mask_count += len(chosen)
            kinds.append(kind)
            lives.append(live)
        return torch.cat(kinds)[which], torch.cat(lives)[which]

    def finish(
        self, heads: int, head_group: dict[int, int], origin: int, order: Order, merge: set[int]
    ) -> tuple[Component, int, int]:
        """The component, and its live and visited pairs over all heads."""
        q, k = self.q, self.k
        device = q.device
        group, row, column, kind = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        if self.masks:
            masks, inverse = distinct_masks(torch.cat(self.masks))
            bands, band, order_of = find_bands(masks)
            masks, band = masks[order_of], band[order_of]
            rank = torch.empty_like(order_of)
            rank[order_of] = torch.arange(len(order_of), device=device)
            kind = torch.where(kind >= 0, rank[inverse][kind.clamp(min=0)], kind)
            if FEW_BANDS * int(((kind >= 0) & (kind < bands)).sum()) < int((kind >= bands).sum()):
                bands = 0
        else:
            masks = torch.zeros((0, q.block, k.block), dtype=torch.bool, device=device)
            band, bands = torch.zeros((0, 4), dtype=torch.int32, device=device), 0
        groups = len(self.live)
        table = torch.full((heads,), -1, dtype=torch.int32)
        merging = torch.zeros(heads, dtype=torch.int32)
        for head, u in head_group.items():
            table[head] = u
            merging[head] = int(head in merge)
        component = Component(
            block_q=q.block,
            block_k=k.block,
            group=table.to(device),
            merge=merging.to(device),
            q_index=q.index(origin),
            k_index=k.index(0),
            q_start=q.start - origin,
            k_start=k.start,
            covers=order.all_queries,
            q_blocks=q.count,
            k_blocks=k.count,
            rows=make_lists(group, row, column, kind, groups, q.count, k.count, bands),
            columns=make_lists(group, column, row, kind, groups, k.count, q.count, bands),
            masks=masks,
            band=band,
            bands=bands,
            order=order.name,
            all_keys=order.all_keys,
            stride=order.stride,
            even=order.even(k.block),
        )
        live = sum(self.live[u] for u in head_group.values())
        visited = sum(self.visited[u] for u in head_group.values())
        return component, live, visited


def evaluate_tiles(rule: Rule, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """[n] heads, [n, block_q] and [n, block_k] positions -> [n, block_q, block_k] bool; pads are dead."""
    valid = (i != PAD)[:, :, None] & (j != PAD)[:, None, :]
    return rule.live(head[:, None, None], i[:, :, None], j[:, None, :]) & valid


def make_lists(
    group: Tensor, row: Tensor, column: Tensor, kind: Tensor, groups: int, rows: int, columns: int, bands: int
) -> Lists:
    """Sorts tiles [n] into compressed rows."""
    rank = torch.where(kind < 0, 0, torch.where(kind < bands, 1, 2))
    row_of = group * rows + row
    order = torch.argsort((row_of * 3 + rank) * columns + column)
    row_of, rank, kind = row_of[order], rank[order], kind[order]
    tiles = column[order].int()
    index = torch.cat([tiles, tiles.new_full((1,), SENTINEL)])
    chosen = row_of, row_of[rank == 0], row_of[rank == 1]
    count, full, band = (torch.bincount(each, minlength=groups * rows) for each in chosen)
    start = torch.cumsum(count, 0) - count
    follows = (row_of[1:] == row_of[:-1]) & (rank[1:] == 0) & (rank[:-1] == 0)
    contiguous = bool((~follows | (tiles[1:] == tiles[:-1] + 1)).all())
    most = int(kind.max()) if len(kind) else 0
    narrow = torch.int8 if most < (1 << 7) - 1 else torch.int16 if most < (1 << 15) - 1 else torch.int32
    shape = (groups, rows)
    return Lists(
        start=start.int().view(shape),
        count=count.int().view(shape),
        full=full.int().view(shape),
        band=band.int().view(shape),
        index=index,
        kind=kind.to(narrow),
        contiguous=contiguous,
        longest=int(count.max()) if len(count) else 0,
    )


def distinct_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """[n, a, b] bool -> the distinct ones, and the index of each mask among them."""
    picks, inverse = one_of_each(pack_bits(masks).flatten(1).long())
    return masks[picks], inverse


def one_of_each(table: Tensor) -> tuple[Tensor, Tensor]:
    """[n, m] int64 -> a place of each distinct row, and for every row which of them it equals."""
    distinct, which = torch.unique(hash_rows(table), return_inverse=True)
    return torch.empty_like(distinct).scatter_(0, which, torch.arange(len(table), device=table.device)), which


def find_bands(masks: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many masks are bands in place offsets, [M, 4] int32 bounds, and an order that puts the bands first."""
    a, b = masks.shape[1:]
    device = masks.device
    m, n = torch.arange(a, device=device)[:, None], torch.arange(b, device=device)[None, :]
    distance = m - n
    bounds, flags = [], []
    for chunk in masks.split(max(1, EVALUATED_AT_ONCE // (a * b))):
        lo = torch.where(chunk, distance, a + b).amin((1, 2))
        hi = torch.where(chunk, distance, -(a + b)).amax((1, 2))
        last_m = torch.where(chunk, m, 0).amax((1, 2))
        last_n = torch.where(chunk, n, 0).amax((1, 2))
        bound = torch.stack([lo, hi, last_m, last_n], 1)
        lo, hi, last_m, last_n = bound[:, :, None, None].unbind(1)
        band = (distance >= lo) & (distance <= hi) & (m <= last_m) & (n <= last_n)
        flags.append((band == chunk).all(2).all(1))
        bounds.append(bound.int())
    flag = torch.cat(flags)
    return int(flag.sum()), torch.cat(bounds), torch.argsort((~flag).int(), stable=True)


def pack_bits(masks: Tensor) -> Tensor:
    """[n, a, b] bool -> [n, a, ceil(b / 32)] int32, bit n % 32 of word n // 32."""
    n, a, b = masks.shape
    words = -(-b // 32)
    padded = torch.nn.functional.pad(masks, (0, words * 32 - b)) if words * 32 != b else masks
    device = masks.device
    weight = torch.ones(32, dtype=torch.int64, device=device) << torch.arange(32, device=device)
    out = torch.empty((n, a, words), dtype=torch.int32, device=device)
    step = max(1, EVALUATED_AT_ONCE // (a * words * 32))
    for begin in range(0, n, step):
        part = padded[begin : begin + step].view(-1, a, words, 32).long()
        value = (part * weight).sum(-1)
        out[begin : begin + step] = torch.where(value >= 1 << 31, value - (1 << 32), value).int()
    return out
