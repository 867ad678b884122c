"""Launches the kernels of selected attention, both passes, by plans that are made once for each shape and kept.

A launch serves as many heads as the memory of their parts is meant for. Legend: see common.py; B batch, H heads, Hkv key/value
heads, T tokens, n picks a query, R = T * n entries of a row of lists, nb blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import Plan, as_contiguous, from_16_bytes, on_its_device, width_of
from longspan_kernels.selected.options import Selection
from longspan_kernels.selected.triton import configs
from longspan_kernels.selected.triton.backward_kernels import add_runs, row_numbers, selected_columns, selected_rows
from longspan_kernels.selected.triton.call_layout import in_units, laid_out, like_queries
from longspan_kernels.selected.triton.common import Constants
from longspan_kernels.selected.triton.forward_kernels import merge_parts, selected_parts
from longspan_kernels.selected.triton.schedule_kernel import cut_lists


@dataclass(frozen=True)
class Shape:
    """Everything that launches depend on; calls of one shape differ only in their pointers."""

    batch: int
    heads: int
    kv_heads: int
    pickers: int
    length: int
    width: int
    picks: int
    block_size: int
    causal: bool
    scale: float
    dropout_p: float
    dtype: torch.dtype
    device: torch.device
    q_strides: tuple[int, ...]
    kv_strides: tuple[int, ...]
    companions: tuple[torch.dtype | None, ...]  # of lengths, segments and seed: kernels differ where one is absent

    @property
    def group(self) -> int:
        return self.heads // self.pickers

    @property
    def repeat(self) -> int:
        return self.pickers // self.kv_heads

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block_size)

    @property
    def entries(self) -> int:
        """R: entries of a row of lists."""
        return self.length * self.picks


@dataclass(frozen=True)
class Served:
    """Heads that one launch serves: GC heads of the group of each of `pickers` heads that pick.

    Attributes:
        first: the first of them.
        adds: whether an earlier launch has written gradients of the same keys.
        goes_on: whether the one before has summed gradients by the same lists, to which these are added.
        ends: whether it is the last one by its lists.
    """

    first: int
    pickers: int
    adds: bool
    goes_on: bool
    ends: bool


@dataclass(frozen=True)
class Cut:
    """Lists cut into work items of `entries` entries or less."""

    plan: Plan
    list_rows: int
    blocks: int
    items: int

    def __call__(self, start: Tensor) -> tuple[Tensor, Tensor]:
        lists = start.new_empty(self.list_rows * self.blocks * 4)
        items = start.new_empty(self.list_rows * self.items)
        self.plan(start, lists, items)
        return lists, items


def shape_of(q: Tensor, k: Tensor, chosen: Selection) -> Shape:
    (B, H, T, D), (_, P, _, n) = q.shape, chosen.picks.shape
    given = chosen.block_size, chosen.causal, chosen.scale, chosen.dropout_p
    companions = tuple(None if x is None else x.dtype for x in (chosen.lengths, chosen.segments, chosen.seed))
    return Shape(B, H, k.shape[1], P, T, D, n, *given, q.dtype, q.device, in_units(q), in_units(k), companions)


class Launches:
    """The launches of one shape, forward and backward.

    Args:
        part_bytes: memory of the parts of picks, times that of q.
    """

    def __init__(self, shape: Shape, part_bytes: int):
        self.shape = s = shape
        itemsize = s.dtype.itemsize
        budget = max(part_bytes * s.heads * s.length * s.width * itemsize * s.batch, configs.LEAST_PART_BYTES)
        at_once = max(1, budget // (s.batch * s.entries * s.width * itemsize))  # heads
        pickers = min(s.kv_heads, at_once)
        widest = 1 << (s.group - 1).bit_length()
        self.heads = min(widest, 1 << ((at_once // pickers).bit_length() - 1))  # GC
        self.served = [
            Served(
                (kv * s.repeat + j) * s.group + g,
                min(pickers, s.kv_heads - kv),
                adds=bool(j or g),
                goes_on=bool(g),
                ends=g + self.heads >= s.group,
            )
            for j in range(s.repeat)
            for kv in range(0, s.kv_heads, pickers)
            for g in range(0, s.group, self.heads)
        ]
        self.cells = s.batch * pickers * s.entries * self.heads  # rows of parts at most
        self.several = self.served[-1].adds
        self.finishes = self.several and s.repeat == 1  # then a key has one list, and the sums of its runs come last

    @cached_property
    def numbers(self) -> dict:
        """The numbers that kernels over gathered queries take."""
        s = self.shape
        (q_b, q_h, q_t), (kv_b, kv_h, kv_t) = s.q_strides, s.kv_strides
        strides = {"q_b": q_b, "q_h": q_h, "q_t": q_t, "kv_b": kv_b, "kv_h": kv_h, "kv_t": kv_t}
        return {**strides, "length": s.length, "threshold": int(s.dropout_p * (1 << 24)), "scale": s.scale}

    def compiled_for(self, tile: configs.Tile, **adding: bool) -> Constants:
        """The constants of kernels over gathered queries."""
        s = self.shape
        split = s.block_size > tile.keys and s.width <= 64  # blocks of one tile and wide heads were not timed with two loops
        return Constants(**self.constants, CAUSAL=s.causal, BM=tile.rows, BN=tile.keys, SPLIT=split, **adding)

    @cached_property
    def constants(self) -> dict:
        s = self.shape
        heads = {"P": s.pickers, "G": s.group, "GC": self.heads, "REPEAT": s.repeat}
        return {**heads, "N": s.picks, "D": s.width, "BD": width_of(s.width), "SIZE": s.block_size}

    def cut(self, entries: int, least: int) -> Cut:
        s = self.shape
        items = s.entries // entries + s.blocks
        list_rows = s.batch * s.pickers
        constants = {"BL": max(16, 1 << (s.blocks - 1).bit_length()), "BI": 1024, "SIZE": s.block_size, "LEAST": least}
        numbers = {"length": s.length, "items": items, "entries": entries, **constants}
        return Cut(Plan(cut_lists, list_rows, numbers, configs.MERGE), list_rows, s.blocks, items)

    def over_rows(self, kernel, tile: configs.Tile) -> tuple[Cut, list[Plan]]:
        """Launches of a kernel whose programs write parts of gathered queries."""
        entries = self.entries_of(tile) * (configs.FORWARD_TILES if self.shape.block_size <= tile.keys else 1)
        cut = self.cut(entries, 0)
        plans = []
        for served in self.served:
            own = {"items": cut.items, "entries": entries, "pickers": served.pickers, "first": served.first}
            numbers = {**own, **self.numbers, "C": self.compiled_for(tile)}
            plans.append(Plan(kernel, self.shape.batch * served.pickers * cut.items, numbers, tile.launch))
        return cut, plans

    def entries_of(self, tile: configs.Tile) -> int:
        """Entries of a tile of rows."""
        return max(1, tile.rows // self.heads)

    def merges(self, weighted: bool, scale: float) -> list[Plan]:
        s, rows = self.shape, configs.MERGED_ROWS
        tiles = -(-s.length // rows)
        constants = {name: value for name, value in self.constants.items() if name != "SIZE"}
        constants |= {"BP": 1 << (s.picks - 1).bit_length(), "BM": rows, "WEIGHTED": weighted}
        plans = []
        for served in self.served:
            own = {"pickers": served.pickers, "first": served.first}
            numbers = {"length": s.length, "tiles": tiles, "blocks": s.blocks, "scale": scale, **own, **constants}
            plans.append(Plan(merge_parts, tiles * s.batch * served.pickers * self.heads, numbers, configs.MERGE))
        return plans

    @cached_property
    def forward(self) -> tuple[Cut, list[Plan], list[Plan]]:
        s = self.shape
        cut, parts = self.over_rows(selected_parts, configs.forward_tile(s.width, s.dtype.itemsize, s.block_size))
        return cut, parts, self.merges(True, 1.0)

    @cached_property
    def merges_of_gradients(self) -> list[Plan]:
        return self.merges(False, self.shape.scale)

    @cached_property
    def queries(self) -> tuple[Cut, list[Plan]] | None:
        """Launches for parts of dq; None where those for keys make them."""
        s = self.shape
        if s.block_size <= self.key_tile.keys:
            return None
        return self.over_rows(selected_rows, configs.rows_tile(s.width, s.dtype.itemsize, s.block_size))

    @cached_property
    def key_tile(self) -> configs.Tile:
        s = self.shape
        return configs.columns_tile(s.width, s.dtype.itemsize, s.block_size)

    @cached_property
    def keys(self) -> tuple[Cut, list[Plan], list[Plan | None]]:
        """Launches for dk and dv, and for the sums of lists that several programs work on, after the last launch by them."""
        s, tile = self.shape, self.key_tile
        subs = -(-s.block_size // tile.keys)
        entries = self.run_entries
        cut = self.cut(entries, 1)
        columns: list[Plan] = []
        sums: list[Plan | None] = []
        for served in self.served:
            here = {"entries": entries, "pickers": served.pickers, "first": served.first, "partials": self.partials}
            compiled = self.compiled_for(tile, ADD=served.adds, GO_ON=served.goes_on)
            numbers = {"items": cut.items, **here, **self.numbers, "C": compiled}
            columns.append(Plan(selected_columns, subs * s.batch * served.pickers * cut.items, numbers, tile.launch))
            sums.append(self.sum_of_runs(here, served.first // s.group % s.repeat > 0) if served.ends else None)
        return cut, columns, sums

    def sum_of_runs(self, here: dict, adds: bool) -> Plan:
        s = self.shape
        constants = {name: value for name, value in self.constants.items() if name not in ("GC", "N")}
        # Few keys a program: the list of a block that every query sees has many runs, and they are added one by one.
        own = {"length": s.length, "BN": configs.SUMMED_KEYS, "ADD": adds, "FINISH": self.finishes}
        programs = -(-s.block_size // configs.SUMMED_KEYS) * s.batch * here["pickers"] * s.blocks
        return Plan(add_runs, programs, {**own, **here, **constants}, configs.MERGE)

    @cached_property
    def run_entries(self) -> int:
        """Entries of a run: few enough to fill the device, and many enough that their float32 sums take little memory."""
        s, tile = self.shape, self.key_tile
        pickers = max(served.pickers for served in self.served)
        subs = -(-s.block_size // tile.keys)
        even = s.batch * pickers * s.entries * subs // configs.WORK_ITEMS
        step = self.entries_of(tile)
        entries = max(4 * step, min(even, 2 * s.picks * s.block_size))
        room = max(configs.LEAST_PART_BYTES, s.batch * s.heads * s.length * s.width * s.dtype.itemsize)
        while entries < s.length and 2 * s.entries // entries * s.batch * pickers * 2 * s.block_size * s.width * 4 > room:
            entries *= 2
        return -(-entries // step) * step

    @cached_property
    def partials(self) -> int:
        """Partial results a row of lists: a list of several runs has at most twice the runs that it would fill."""
        return min(2 * self.shape.entries // self.run_entries, self.shape.entries // self.run_entries + self.shape.blocks)

    def partial_numbers(self) -> int:
        """Numbers in all partial results of a launch."""
        s = self.shape
        return s.batch * max(served.pickers for served in self.served) * self.partials * 2 * s.block_size * s.width

    @cached_property
    def numbers_of_rows(self) -> dict[bool, Plan]:
        """With and without a gradient of the log-sum-exp."""
        s, rows = self.shape, 64
        tiles, (do_b, do_h, do_t) = -(-s.length // rows), s.q_strides
        own = {"do_b": do_b, "do_h": do_h, "do_t": do_t, "length": s.length, "tiles": tiles}
        numbers = {**own, "HEADS": s.heads, "D": s.width, "BD": width_of(s.width), "BM": rows}
        return {given: Plan(row_numbers, tiles * s.batch * s.heads, numbers, configs.MERGE) for given in (False, True)}


@remembered(256)
def launches_of(shape: Shape, part_bytes: int) -> Launches:
    return Launches(shape, part_bytes)


@on_its_device
def triton_forward(q: Tensor, k: Tensor, v: Tensor, chosen: Selection) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D] and lse [B, H, T]."""
    q, k, v = laid_out(q, k, v)
    launches = launches_of(shape_of(q, k, chosen), configs.FORWARD_PART_BYTES)
    lengths, segments = _companions(chosen)
    picks = from_16_bytes(chosen.picks.contiguous())
    cut, parts, merges = launches.forward
    lists, items = cut(from_16_bytes(chosen.start))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    part = torch.empty(launches.cells * q.shape[3], dtype=q.dtype, device=q.device)
    part_lse = torch.empty(launches.cells, dtype=torch.float32, device=q.device)
    for attend, merge in zip(parts, merges, strict=True):
        attend(q, k, v, chosen.order, lists, items, lengths, segments, chosen.seed, part, part_lse)
        merge(part, part_lse, picks, lengths, out, lse)
    return out, lse


@on_its_device
def triton_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, chosen: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; every sum has one order."""
    q, k, v = laid_out(q, k, v)
    dout = like_queries(dout, q)
    launches = launches_of(shape_of(q, k, chosen), configs.PART_BYTES)
    lengths, segments = _companions(chosen)
    picks = from_16_bytes(chosen.picks.contiguous())
    rows = torch.empty((*lse.shape, 2), dtype=torch.float32, device=q.device)
    dlse = as_contiguous(dlse)
    launches.numbers_of_rows[dlse is not None](out, dout, lse, dlse, rows)

    start = from_16_bytes(chosen.start)
    cut, columns, sums = launches.keys
    lists, items = cut(start)
    queries = launches.queries
    if queries is not None:
        row_lists, row_items = queries[0](start)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    # Launches that add to what others wrote do it in float32.
    kind = torch.float32 if launches.several else k.dtype
    dk, dv = (torch.empty(k.shape, dtype=kind, device=q.device) for _ in range(2))
    finished = [torch.empty(k.shape, dtype=k.dtype, device=q.device) for _ in range(2)] if launches.finishes else [None] * 2
    partials = torch.empty(max(4, launches.partial_numbers()), dtype=torch.float32, device=q.device)
    part = torch.empty(launches.cells * q.shape[3], dtype=q.dtype, device=q.device)
    for number, (column, add, merge) in enumerate(zip(columns, sums, launches.merges_of_gradients, strict=True)):
        column(q, k, v, dout, rows, chosen.order, lists, items, lengths, segments, chosen.seed, part, dk, dv, partials)
        if add is not None:
            add(lists, partials, dk, dv, *finished)
        if queries is not None:
            queries[1][number](q, k, v, dout, rows, chosen.order, row_lists, row_items, lengths, segments, chosen.seed, part)
        merge(part, None, picks, lengths, dq, None)
    if finished[0] is not None and finished[1] is not None:
        return dq, finished[0], finished[1]
    return dq, dk.to(k.dtype), dv.to(k.dtype)


def _companions(chosen: Selection) -> tuple[Tensor | None, Tensor | None]:
    """Lengths and segments as kernels read them."""
    lengths, segments = map(as_contiguous, (chosen.lengths, chosen.segments))
    return lengths, segments
