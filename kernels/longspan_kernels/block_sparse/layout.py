"""A rule compiled for lengths, heads and tile sizes: components, each a short list of tiles to visit.

Legend: U distinct head groups of a component, n tiles of one side, `block_q` x `block_k` the tile, M distinct partial masks.
Memory is O(visited tiles); nothing here is Tq * Tk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.block_sparse.grid import PAD, Tiles, hash_rows
from longspan_kernels.block_sparse.rules import Rule

EVALUATED_AT_ONCE = 1 << 24  # pairs
SENTINEL = 0  # follows the last entry of a list: a block that exists, read and never visited


@dataclass
class Lists:
    """Compressed rows: for group u and row r, the blocks index[start[u, r] : start[u, r] + count[u, r]].

    Within a row full blocks come first, then those whose mask is a band, then the rest, each ascending.

    Attributes:
        start, count, full, band: [U, n] int32; `full` and `band` count the first two kinds of a row.
        index: [entries + 1] int32, block number on the other side, then SENTINEL: kernels read the next number one entry ahead.
            Layouts made at run time have none, and kernels look before they read there.
        kind: [entries] int8, int16 or int32, the mask of the entry, -1 for full.
        contiguous: every row's full blocks are consecutive, so index need not be read for them.
        longest: the largest count.
    """

    start: Tensor
    count: Tensor
    full: Tensor
    band: Tensor
    index: Tensor
    kind: Tensor
    contiguous: bool
    longest: int

    def tensors(self) -> list[Tensor]:
        return [self.start, self.count, self.full, self.band, self.index, self.kind]


@dataclass(eq=False)
class Component:
    """Tiles to visit in one token order; components of a layout hold disjoint pairs and merge by log-sum-exp.

    Attributes:
        block_q, block_k: tile sides.
        group: [H] int32, the row group that serves each head, -1 where this component has nothing for it. Batch element b
            of a layout made at run time uses group[h] + b * batch_groups; batch_groups is 0 where the batch shares lists.
        merge: [H] int32, 1 where an earlier component has already written the head's output.
        q_index, k_index: [n * block] int32 token row at each place of the order, -1 for none; None in the natural order,
            where place p holds token row p + q_start (or p + k_start), rows out of range not existing. [U, n * block] where
            each group has an order of its own (layouts made at run time).
        covers: whether every query row has a place, so that a first component writes every output row.
        rows: key blocks of each query block. columns: query blocks of each key block.
        positional: every visited pair must also have key position <= query position (layouts made at run time, whose
            entries are all called full).
        dynamic: made at run time on the device: nothing of it may be read back to the host, and an entry called full may
            hold places without a token.
        excluded: [B, E, T] int32, pairs (i, j) that are not live: 0 <= x[i] - x[j] <= 1 for one of the E rows x of a batch
            element; None for none (layouts made at run time alone have them).
        k_len: keys of the sequence, where `k_index` may list fewer.
        grows: whether its lines get longer with the sequence, in natural order.
        even: (step, run, first) where its keys are gathered in runs of equal lengths and distances, at any length of the
            sequence. Places without a token compute to any.
        masks: [M, block_q, block_k] bool; the first `bands` of them equal lo <= m - n <= hi, m <= last_m, n <= last_n for the
            place offsets m, n in the tile (a sequence may end inside one), with (lo, hi, last_m, last_n) in `band` [M, 4]
            int32.
    """

    block_q: int
    block_k: int
    group: Tensor
    merge: Tensor
    q_index: Tensor | None
    k_index: Tensor | None
    q_start: int
    k_start: int
    covers: bool
    q_blocks: int
    k_blocks: int
    rows: Lists
    columns: Lists
    masks: Tensor
    band: Tensor
    bands: int
    order: str
    batch_groups: int = 0
    positional: bool = False
    dynamic: bool = False
    excluded: Tensor | None = None
    k_len: int = 0
    grows: bool = False
    even: tuple[int, int, int] | None = None

    def tensors(self) -> list[Tensor]:
        own = [self.group, self.merge, self.q_index, self.k_index, self.masks, self.band]
        return [t for t in own if t is not None] + self.rows.tensors() + self.columns.tensors()


@dataclass
class Layout:
    """Everything a backend needs to attend by a pattern at one length.

    `origin` is Tk - Tq: query row r is at position r + origin. `live_pairs` and `visited_pairs` are summed over heads.
    `covered` says whether the first component of every head writes every query row.
    """

    q_len: int
    k_len: int
    heads: int
    components: list[Component]
    live_pairs: int
    visited_pairs: int
    covered: bool

    @property
    def origin(self) -> int:
        return self.k_len - self.q_len

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for c in self.components for t in c.tensors())


@dataclass
class Entries:
    """Tiles found for one component, before they are sorted into lists."""

    group: Tensor
    row: Tensor
    column: Tensor
    kind: Tensor  # -1 full, else an index into masks


class Compiler:
    """Collects the tiles of one component over its head groups, and classifies each as dead, partial or full."""

    def __init__(self, q: Tiles, k: Tiles):
        self.q, self.k = q, k
        self.found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # group, row, column, kind
        self.masks: list[Tensor] = []
        self.mask_count = 0
        self.live: list[int] = []  # per group
        self.visited: list[int] = []
        self.head_groups: list[int] = []

    def add(self, rule: Rule, heads: tuple[int, ...]) -> dict[int, int]:
        """Adds a rule for some heads; returns the group of each head."""
        q, k = self.q, self.k
        served = heads if rule.per_head else heads[:1]
        base = len(self.live)
        rows, columns, groups, owners = [], [], [], []
        for offset, head in enumerate(served):
            row, column = rule.tiles(head, q, k, None, None)
            rows.append(row)
            columns.append(column)
            groups.append(torch.full_like(row, base + offset))
            owners.append(torch.full_like(row, head))
        row, column, group, owner = torch.cat(rows), torch.cat(columns), torch.cat(groups), torch.cat(owners)
        kind, live = self._classify(rule, owner, row, column)
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
            picks = torch.arange(len(row), device=row.device)
            which = picks
        else:
            state = hash_rows(torch.stack([q.shape_id[row], k.shape_id[column], *signature], 1))
            distinct, which = torch.unique(state, return_inverse=True)
            picks = torch.empty_like(distinct).scatter_(0, which, torch.arange(len(row), device=row.device))
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
        self, heads: int, head_group: dict[int, int], origin: int, order: str, covers: bool, merge: set[int]
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
        else:
            masks = torch.zeros((0, q.block, k.block), dtype=torch.bool, device=device)
            band, bands = torch.zeros((0, 4), dtype=torch.int32, device=device), 0
        groups = len(self.live)
        table = torch.full((heads,), -1, dtype=torch.int32)
        merging = torch.zeros(heads, dtype=torch.int32)
        for head, u in head_group.items():
            table[head] = u
            merging[head] = int(head in merge)
        entries = Entries(group, row, column, kind)
        component = Component(
            block_q=q.block, block_k=k.block, group=table.to(device), merge=merging.to(device),
            q_index=q.index(origin), k_index=k.index(0), q_start=q.start - origin, k_start=k.start, covers=covers,
            q_blocks=q.count, k_blocks=k.count,
            rows=make_lists(entries, groups, q.count, k.count, bands),
            columns=make_lists(Entries(group, column, row, kind), groups, k.count, q.count, bands),
            masks=masks, band=band, bands=bands, order=order,
        )  # fmt: skip
        live = sum(self.live[u] for u in head_group.values())
        visited = sum(self.visited[u] for u in head_group.values())
        return component, live, visited


DEAD = -2


def evaluate_tiles(rule: Rule, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """[n] heads, [n, block_q] and [n, block_k] positions -> [n, block_q, block_k] bool; pads are dead."""
    valid = (i != PAD)[:, :, None] & (j != PAD)[:, None, :]
    return rule.live(head[:, None, None], i[:, :, None], j[:, None, :]) & valid


def distinct_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """[n, a, b] bool -> the distinct ones, and the index of each mask among them."""
    state = hash_rows(pack_bits(masks).flatten(1).long())
    distinct, inverse = torch.unique(state, return_inverse=True)
    first = torch.empty_like(distinct).scatter_(0, inverse, torch.arange(len(masks), device=masks.device))
    return masks[first], inverse


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


def make_lists(entries: Entries, groups: int, rows: int, columns: int, bands: int) -> Lists:
    """Sorts tiles into compressed rows."""
    rank = torch.where(entries.kind < 0, 0, torch.where(entries.kind < bands, 1, 2))
    line = entries.group * rows + entries.row
    order = torch.argsort((line * 3 + rank) * columns + entries.column)
    line, rank = line[order], rank[order]
    tiles = entries.column[order].int()
    index = torch.cat([tiles, tiles.new_full((1,), SENTINEL)])

    def per_row(keep: Tensor | None = None) -> Tensor:
        chosen = line if keep is None else line[keep]
        return torch.bincount(chosen, minlength=groups * rows)

    count, full, band = per_row(), per_row(rank == 0), per_row(rank == 1)
    start = torch.cumsum(count, 0) - count
    contiguous = True
    if len(tiles) > 1:
        follows = (line[1:] == line[:-1]) & (rank[1:] == 0) & (rank[:-1] == 0)
        contiguous = bool((~follows | (tiles[1:] == tiles[:-1] + 1)).all())
    kind = entries.kind[order]
    most = int(kind.max()) if len(kind) else 0
    narrow = torch.int8 if most < (1 << 7) - 1 else torch.int16 if most < (1 << 15) - 1 else torch.int32
    shape = (groups, rows)
    return Lists(
        start=start.int().view(shape), count=count.int().view(shape), full=full.int().view(shape),
        band=band.int().view(shape), index=index, kind=kind.to(narrow),
        contiguous=contiguous, longest=int(count.max()) if len(count) else 0,
    )  # fmt: skip


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
