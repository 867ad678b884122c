"""Block-sparse attention in plain torch, on any device: forward and backward over visited tiles only.

Rows of a layout that visit equally many tiles are batched: their key tiles are gathered side by side, and one batched matrix
product scores them. Work is cut into chunks that stay near the cache, so memory does not grow with the visited pairs.

Legend: G (batch, head) pairs of a chunk, R rows, n tiles a row, bq and bk the tile sides, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.layout import Component, Layout, Lists
from longspan_kernels.block_sparse.reference import keep

SCORES_AT_ONCE = 1 << 20  # score elements of one chunk
TOKENS_AT_ONCE = 1 << 19  # elements of q that are put in order at once
MOST_SIGNATURES = 16  # of masks beside each other, for which rows are batched apart
COLUMNS_AT_ONCE = 1 << 14  # keys of a row before it is split
NEGATIVE = -1e30  # a dead score: finite, so that nothing becomes NaN


@dataclass
class RowBatch:
    """Rows of one group that visit equally many tiles."""

    rows: Tensor | slice
    count: int
    index: Tensor  # [R, n] key tiles
    kinds: Tensor | None  # [R, n] masks, -1 for full; None where all are full
    own: bool = False  # each row visits exactly the tile of its own number, so nothing needs gathering
    alike: bool = False  # all rows have the same masks
    window: bool = False  # consecutive rows visit consecutive tiles, one further each row: overlapping views will do
    shared: bool = False  # consecutive rows visit the same consecutive tiles: one problem of many queries
    first: int = 0  # of the tiles of a window, or of those shared

    def row_numbers(self, device: torch.device) -> Tensor:
        if isinstance(self.rows, slice):
            return torch.arange(self.rows.start, self.rows.stop, device=device)
        return self.rows

    def cut(self, begin: int, stop: int) -> RowBatch:
        """Its rows [begin, stop), counted from 0."""
        if isinstance(self.rows, slice):
            rows: Tensor | slice = slice(self.rows.start + begin, self.rows.start + stop)
        else:
            rows = self.rows[begin:stop]
        kinds = None if self.kinds is None else self.kinds[begin:stop]
        tile = self.first + begin if self.window else self.first
        return replace(self, rows=rows, index=self.index[begin:stop], kinds=kinds, first=tile)


def row_batches(lists: Lists, u: int) -> list[RowBatch]:
    """Groups the rows of group `u` by how many tiles they visit, and by their masks where those are few kinds of rows."""
    count = lists.count[u]
    out = []
    for n in torch.unique(count).tolist():
        if n == 0:
            continue
        rows = (count == n).nonzero().flatten()
        entries = lists.start[u][rows].long()[:, None] + torch.arange(n, device=rows.device)
        index, place = lists.index[entries].long().sort(1)
        kinds = lists.kind[entries].long().gather(1, place)
        if bool((kinds < 0).all()):  # as all are of lists made at run time; torch.unique over rows takes a CPU long
            out.append(_row_batch(rows, index, kinds, True))
            continue
        signatures, which = torch.unique(kinds, dim=0, return_inverse=True)
        if len(signatures) > MOST_SIGNATURES:
            out.append(_row_batch(rows, index, kinds, False))
            continue
        for number in range(len(signatures)):
            chosen = which == number
            out.append(_row_batch(rows[chosen], index[chosen], kinds[chosen], True))
    return out


def _row_batch(rows: Tensor, index: Tensor, kinds: Tensor, alike: bool) -> RowBatch:
    """A batch of rows [R] with their tiles and masks [R, n], and the regularities found in them."""
    n = index.shape[1]
    consecutive = len(rows) == int(rows[-1] - rows[0]) + 1
    chosen = slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows
    masked = bool((kinds >= 0).any())
    steady = consecutive and alike and bool((index == index[:, :1] + torch.arange(n, device=index.device)).all())
    return RowBatch(
        chosen,
        n,
        index,
        kinds if masked else None,
        own=n == 1 and consecutive and bool((index[:, 0] == rows).all()),
        alike=alike,
        first=int(index[0, 0]),
        window=steady and bool((index[:, 0] - rows == index[0, 0] - rows[0]).all()),
        shared=steady and not masked and bool((index[:, 0] == index[0, 0]).all()),
    )


class Workspace:
    """Buffers that the chunks and row batches of one pass reuse: allocating takes a CPU three times as long as a product."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor; the next one of this name takes its memory."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = self._like.new_empty(size)
        return flat[:size].view(shape)

    def zeros(self, name: str, like: Tensor) -> Tensor:
        return self.take(name, *like.shape).zero_()

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """The batched matrix product of a [N, i, j] and b [N, j, k]."""
        return torch.bmm(a, b, out=self.take(name, a.shape[0], a.shape[1], b.shape[2]))


def split_width(block_k: int) -> int:
    """Tiles that a row visits before it is split."""
    return max(1, COLUMNS_AT_ONCE // block_k)


def fitting_batches(batch: RowBatch, pairs: int, block_q: int, block_k: int) -> Iterator[RowBatch]:
    """Chunks of a row batch whose scores fit, for `pairs` (batch, head) pairs at once."""
    columns = split_width(block_k)
    width = min(batch.count, columns)
    rows = max(1, SCORES_AT_ONCE // (pairs * block_q * block_k * width))
    total = len(batch.index)
    for r in range(0, total, rows):
        part = batch.cut(r, min(total, r + rows))
        for c in range(0, batch.count, columns):
            index = part.index[:, c : c + columns]
            kinds = None if part.kinds is None else part.kinds[:, c : c + columns]
            yield RowBatch(part.rows, index.shape[1], index, kinds, batch.own)


def _of_group(index: Tensor | None, u: int) -> Tensor | None:
    """The order of group u, where groups have orders of their own."""
    return index if index is None or index.dim() == 1 else index[u]


class Chunk:
    """Some (batch, head) pairs of one component, with their tokens in the component's order."""

    def __init__(self, component: Component, layout: Layout, options: Options, u: int, batch: slice, heads: list[int]):
        self.component, self.layout, self.options, self.batch, self.head_numbers = component, layout, options, batch, heads
        consecutive = heads == list(range(heads[0], heads[-1] + 1))
        self.heads: slice | list[int] = slice(heads[0], heads[-1] + 1) if consecutive else heads
        self.q_index, self.k_index = _of_group(component.q_index, u), _of_group(component.k_index, u)

    def side(self, queries: bool) -> tuple[Tensor | None, int, int, int]:
        """Index, first row, tile side and tile count of the queries' or the keys' order."""
        c = self.component
        if queries:
            return self.q_index, c.q_start, c.block_q, c.q_blocks
        return self.k_index, c.k_start, c.block_k, c.k_blocks

    def ordered(self, x: Tensor, queries: bool, heads: slice | list[int], space: Workspace, name: str) -> Tensor:
        """x [B, H, T, D] -> [G, blocks, block, D] in the component's order, at computing precision; maybe in `space`."""
        index, start, block, blocks = self.side(queries)
        x = x[self.batch, heads]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        lengths = self.options.q_lengths if queries else self.options.k_lengths
        if lengths is not None:
            # What lies beyond a length may be anything, NaN included, and 0 * NaN is NaN.
            beyond = torch.arange(x.shape[2], device=x.device) >= lengths[self.batch][:, None]
            x = x.masked_fill(beyond[:, None, :, None], 0.0)
        if index is not None:
            shape = (*x.shape[:2], len(index), x.shape[3])
            x = torch.index_select(x, 2, index.clamp(min=0).long(), out=space.take(name, *shape))
        elif start != 0 or blocks * block != x.shape[2]:
            x = torch.nn.functional.pad(x, (0, 0, -start, blocks * block + start - x.shape[2]))
        return x.reshape(-1, blocks, block, x.shape[3])

    def kv_heads(self, x: Tensor, H: int) -> slice | list[int]:
        repeat = H // x.shape[1]
        return self.heads if repeat == 1 else [h // repeat for h in self.head_numbers]

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, space: Workspace) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [B, H or Hkv, T, D] in the component's order, key/value heads repeated for the queries' heads."""
        ko = self.ordered(k, False, self.kv_heads(k, q.shape[1]), space, "k")
        vo = self.ordered(v, False, self.kv_heads(v, q.shape[1]), space, "v")
        return self.ordered(q, True, self.heads, space, "q"), ko, vo

    def ordered_rows(self, x: Tensor, fill: float) -> Tensor:
        """x [B, H, Tq] -> [G, blocks, block, 1]; places without a row hold `fill`."""
        c = self.component
        x = x[self.batch, self.heads]
        if self.q_index is not None:
            x = torch.where(self.q_index >= 0, x.index_select(2, self.q_index.clamp(min=0).long()), fill)
        elif c.q_start != 0 or c.q_blocks * c.block_q != x.shape[2]:
            x = torch.nn.functional.pad(x, (-c.q_start, c.q_blocks * c.block_q + c.q_start - x.shape[2]), value=fill)
        return x.reshape(-1, c.q_blocks, c.block_q, 1)

    def restored(self, x: Tensor, queries: bool, length: int) -> tuple[Tensor, Tensor | None]:
        """[G, blocks, block, D] -> values [G, rows, D] and the token rows they belong to (None: all, in order)."""
        index, start, _, _ = self.side(queries)
        x = x.flatten(1, 2)
        if index is None:
            return x[:, -start : -start + length], None
        places = (index >= 0).nonzero().flatten()
        if len(places) == len(index):
            return x, index.long()
        return x.index_select(1, places), index[places].long()

    def positions(self, queries: bool) -> Tensor:
        """[blocks, block] token rows by place; out of range or -1 for none."""
        index, start, block, blocks = self.side(queries)
        if index is not None:
            return index.long().view(blocks, block)
        return torch.arange(blocks * block, device=self.component.group.device).view(blocks, block) + start

    def mask(self, batch: RowBatch) -> Tensor | None:
        """Live pairs of a row batch, broadcastable to [b, h, R, bq, n * bk]; None where every pair is live."""
        c, o = self.component, self.options
        mask = None
        R, n = batch.index.shape
        if batch.kinds is not None:
            kinds = torch.where(batch.kinds < 0, len(c.masks), batch.kinds)
            full = torch.ones_like(c.masks[:1])
            mask = torch.cat([c.masks, full])[kinds].transpose(1, 2).reshape(1, 1, R, c.block_q, n * c.block_k)
        if not (o.per_batch or c.dynamic):
            return mask
        row = self.positions(True)[batch.row_numbers(c.group.device)]  # (R, bq)
        column = self.positions(False)[batch.index].flatten(1)  # (R, n * bk)

        def also(extra: Tensor) -> Tensor:
            return extra if mask is None else mask & extra

        if c.dynamic:  # entries are called full whatever their tokens
            row_exists = (row >= 0) & (row < self.layout.q_len)
            column_exists = (column >= 0) & (column < self.layout.k_len)
            mask = also((row_exists[:, :, None] & column_exists[:, None, :])[None, None])
        if c.positional:
            mask = also(((row + self.layout.origin)[:, :, None] >= column[:, None, :])[None, None])
        safe_row, safe_column = row.clamp(0, self.layout.q_len - 1), column.clamp(0, self.layout.k_len - 1)
        if o.q_lengths is not None:
            mask = also((row < o.q_lengths[self.batch][:, None, None])[:, None, :, :, None])
        if o.k_lengths is not None:
            mask = also((column < o.k_lengths[self.batch][:, None, None])[:, None, :, None, :])
        if o.q_segments is not None and o.k_segments is not None:
            q_segment = o.q_segments[self.batch][:, safe_row][:, None, :, :, None]
            k_segment = o.k_segments[self.batch][:, safe_column][:, None, :, None, :]
            mask = also(q_segment == k_segment)
        if c.excluded is not None:
            for x in c.excluded[self.batch].unbind(1):  # (b, T)
                distance = x[:, safe_row][:, None, :, :, None] - x[:, safe_column][:, None, :, None, :]
                mask = also((distance < 0) | (distance > 1))
        return mask

    def scores(self, q: Tensor, k: Tensor, batch: RowBatch, space: Workspace) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled, masked scores [G, R, bq, n * bk] of ordered q and k, with the gathered tiles of both."""
        c, o = self.component, self.options
        G, _, bq, D = q.shape
        R, n = batch.index.shape
        rows = q[:, batch.rows].reshape(G * R, bq, D)
        keys = gathered(k, batch, space, "keys")
        s = space.product("scores", rows, keys.transpose(1, 2)).view(G, R, bq, n * c.block_k)
        if o.bias is not None:
            bias = o.bias[:, *self.bias_cells(batch)]  # (H or 1, R, n)
            bias = bias if len(bias) == 1 else bias[self.heads]
            s.view(-1, len(self.head_numbers), R, bq, n, c.block_k).add_(bias[None, :, :, None, :, None].to(s.dtype))
        mask = self.mask(batch)
        if mask is not None:
            s.view(-1, len(self.head_numbers), R, bq, n * c.block_k).masked_fill_(~mask, NEGATIVE)
        return s, rows, keys

    def bias_cells(self, batch: RowBatch) -> tuple[Tensor, Tensor]:
        """Rows [R, 1] and columns [R, n] of the block bias that tiles belong to."""
        c, bb = self.component, self.options.bias_block
        first = self.layout.origin
        row = (batch.row_numbers(c.group.device) * c.block_q + c.q_start + first) // bb - first // bb
        return row[:, None], batch.index * c.block_k // bb

    def kept(self, batch: RowBatch) -> Tensor:
        """Which weights survive dropout: [G, R, bq, n * bk]."""
        o, device = self.options, self.component.group.device
        assert o.seed is not None
        H = self.layout.heads
        numbers = torch.arange(self.batch.start, self.batch.stop, device=device)[:, None] * H
        numbers = (numbers + torch.tensor(self.head_numbers, device=device)).view(-1, 1, 1, 1)
        row = self.positions(True)[batch.row_numbers(device)] + self.layout.origin
        column = self.positions(False)[batch.index].flatten(1)
        return keep(o.seed, numbers, row[None, :, :, None], column[None, :, None, :], o.dropout_p)


def gathered(x: Tensor, batch: RowBatch, space: Workspace, name: str) -> Tensor:
    """The key tiles of each row side by side: x [G, blocks, bk, D] -> [G * R, n * bk, D]."""
    G, _, block, D = x.shape
    R, n = batch.index.shape
    if batch.own:
        return x[:, batch.rows].reshape(G * R, block, D)
    tiles = torch.index_select(x, 1, batch.index.flatten(), out=space.take(name, G, R * n, block, D))
    return tiles.view(G * R, n * block, D)


_batches: Derived[list[RowBatch]] = Derived()


def chunks(component: Component, layout: Layout, options: Options, q: Tensor) -> Iterator[tuple[Chunk, list[RowBatch]]]:
    """The chunks of a component, each with its row batches."""
    B, _, _, D = q.shape
    by_group: dict[int, list[int]] = {}
    for head, u in enumerate(component.group.tolist()):
        if u >= 0:
            by_group.setdefault(u, []).append(head)
    places = max(component.q_blocks * component.block_q, component.k_blocks * component.block_k)
    fit = max(1, TOKENS_AT_ONCE // (places * D))
    for b_group in range(B if component.batch_groups else 1):
        for u, heads in by_group.items():
            group = u + b_group * component.batch_groups
            own = _batches.get(component, group, partial(row_batches, component.rows, group))
            first, stop = (b_group, b_group + 1) if component.batch_groups else (0, B)
            step = max(1, fit // len(heads))
            for b in range(first, stop, step):
                for h in range(0, len(heads), fit):
                    yield Chunk(component, layout, options, group, slice(b, min(stop, b + step)), heads[h : h + fit]), own
