"""Says which program serves which tile row (or tile column): long ones are split, the heaviest parts start first.

A launch waits for its longest program. Where all tile rows of a component are about equally long, one program serves each of
them in order. Otherwise the work is listed once, on the layout's device, and kept with the component.

Legend: a tile row belongs to a head, a tile column to a key head; both are called tile rows here. An entry is a tile to visit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.compiler import pack_bits
from longspan_kernels.block_sparse.layout import Component, Lists

SHORTEST_SPLIT = 8  # entries; less is not worth a partial result
EVEN = 1.5  # longest tile row over the mean, up to which the order does not matter
PROGRAMS_PER_PROCESSOR = 2
# Where none is longer than this part of a fair share, tile columns are split at most in two, those above the second part of it.
IN_TWO, HALVED = 1.1, 0.33
WHOLE = 0.85  # part of a fair share up to which rows without masks end in time, started first
# Parts of few entries, and of little beside a fair share: their order hardly shows in when a launch ends.
LIGHT, LIGHT_ENTRIES = 0.05, 32
ONE_CLASS = 1 << 30  # tiles, more than any
LAUNCH = 0.6  # of a fair share: the entries one after another in a launch, as more than two programs share a processor
# Even tile rows are split where there are fewer of them a processor, and they are longer.
FEWEST_PROGRAMS, SHORTEST_TO_SPLIT, USUAL_SIDE = 3, 32, 64


@dataclass
class Work:
    """The programs of one launch.

    Attributes:
        tile_rows: of all heads, a program each where there are no items.
        items: [programs, 8] int32 (first entry, first masked, first bit-masked, end, tile of the first entry, head, tile row,
            partial result or -1), or None for one program a tile row: even ones, and lists made at run time. Where several
            heads share a key head, the first entry and the end count from the first entry of the first of them.
        splits: [n, 4] int32 (head, tile row, first partial, parts) of the tile rows that were split, or None.
        partials: partial results for one batch element.
        in_two: tile columns are split at most in two, and no results are partial: the second half adds to what the first has
            written. The number of a first half is that of its flag, that of a second one comes `flags` later.
        flags: tile columns split in two, for one batch element.
    """

    tile_rows: int
    items: Tensor | None = None
    splits: Tensor | None = None
    partials: int = 0
    in_two: bool = False
    flags: int = 0

    @property
    def split_rows(self) -> int:
        """Tile rows whose partial results are to be added up, for one batch element."""
        return 0 if self.splits is None else len(self.splits)

    def programs(self, batch: int) -> int:
        return (self.tile_rows if self.items is None else len(self.items)) * batch


_works: Derived[Work] = Derived()
_records: Derived[Tensor] = Derived()
_details: Derived[Tensor] = Derived()
_packed: Derived[Tensor] = Derived()
_one_group: Derived[bool] = Derived()
_stepped: Derived[Steps | None] = Derived()


def processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2


def work_of(
    component: Component, name: str, repeat: int, batch: int, everything: bool, in_two: bool = False, whole: bool = False
) -> Work:
    """The programs for `rows` or `columns` of a component.

    Args:
        repeat: query heads a head: 1 for rows, H // Hkv for columns.
        everything: tile rows without entries need a program too (they write zeros).
        in_two: whether halves of one may add up in the dtype of the result, which rounds once more.
        whole: whether those up to WHOLE are left whole.
    """
    lists: Lists = getattr(component, name)
    heads, tile_rows = len(component.group) // repeat, lists.start.shape[1]
    if component.dynamic:
        return Work(tile_rows * heads)
    # The share of one processor decides how long a part may be; rounded, so that batch sizes share schedules.
    rounded = 1 << (batch - 1).bit_length()

    def make() -> Work:
        groups = component.group.view(heads, repeat)
        side = component.block_q if name == "rows" else component.block_k
        return _schedule(lists, name, groups, rounded, everything, in_two, whole, side)

    return _works.get(component, (name, repeat, rounded, everything, in_two, whole), make)


def _schedule(
    lists: Lists, name: str, groups: Tensor, batch: int, everything: bool, in_two: bool, whole: bool, side: int
) -> Work:
    heads, tile_rows = len(groups), lists.start.shape[1]
    served = groups >= 0
    counts = lists.count[groups.clamp(min=0).long()] * served[:, :, None]  # (heads, share, tile rows)
    weight = counts.sum(1).flatten()  # (heads * tile rows)
    total, longest = int(weight.sum()), int(weight.max())
    fair = batch * total / (PROGRAMS_PER_PROCESSOR * processors(weight.device))
    # A part of half a fair share, started first, cannot keep the launch waiting.
    longest_part = max(SHORTEST_SPLIT, 1 << max(0, int(fair / 2)).bit_length() >> 1)
    if whole and longest <= WHOLE * fair:
        longest_part = max(longest_part, longest)
    # The ratio hardly follows the length, so that one kind of launch serves them all.
    in_two = in_two and longest <= IN_TWO * fair
    if in_two:
        longest_part = max(SHORTEST_SPLIT, int(HALVED * fair), -(-longest // 2))
    busy = int((weight > 0).sum())
    even = longest * max(busy, 1) <= EVEN * total and (everything or 2 * busy >= heads * tile_rows)
    # A tile row of larger tiles has more warps, and counts as the smaller ones that it holds.
    enough = batch * heads * tile_rows * max(1, side // USUAL_SIDE) >= FEWEST_PROGRAMS * processors(weight.device)
    if even and (enough or longest <= max(longest_part, SHORTEST_TO_SPLIT)):
        return Work(tile_rows * heads)
    parts = (weight + longest_part - 1) // longest_part
    if everything:
        # Rows of a head that this component does not serve are another's; the columns of a first component are its own.
        wanted = served.any(1) | (name == "columns")
        parts = torch.maximum(parts, wanted[:, None].expand(heads, tile_rows).flatten().to(parts.dtype))
    row_at = torch.arange(heads * tile_rows, device=weight.device)
    first_item = torch.cumsum(parts, 0) - parts
    of = torch.repeat_interleave(row_at, parts)
    part = torch.arange(len(of), device=weight.device) - first_item[of]
    begin = part * weight[of] // parts[of].clamp(min=1)
    end = (part + 1) * weight[of] // parts[of].clamp(min=1)
    split = parts > 1
    split_parts = torch.where(split, parts, 0)
    first_partial = torch.cumsum(split_parts, 0) - split_parts
    flags = int(split.sum()) if in_two else 0
    partial = torch.where(split[of], first_partial[of] // 2 + part * flags if in_two else first_partial[of] + part, -1)
    # Heaviest first, in coarse steps: within one the order stays that of memory. Light parts go head by head, whose numbers
    # stay in the cache, but each as much earlier as it takes longer, so that all end together.
    head, tile_row = of // tile_rows, of % tile_rows
    # The parts of a tile row count alike: the second half of one, which waits for the first, never starts before it.
    size = (weight[of] / parts[of].clamp(min=1)).double()
    level = (2 * torch.log2(size.clamp(min=1))).round().long()
    light = size <= min(LIGHT * fair, LIGHT_ENTRIES)
    turn = (head + 1) * (1 - size / max(1.0, LAUNCH * fair))
    order = torch.argsort(torch.where(light, turn, -level.double() - heads), stable=True)
    masked = bits = tile = torch.zeros_like(of)
    if groups.shape[1] == 1:
        at = (groups[:, 0].clamp(min=0).long()[head], tile_row)
        start = lists.start[at].long()
        masked, bits = start + lists.full[at], start + lists.full[at] + lists.band[at]
        begin, end = start + begin, start + end
        tile = lists.index[begin.clamp(max=len(lists.index) - 1)] if len(lists.index) else tile
    items = torch.stack([begin, masked, bits, end, tile, head, tile_row, partial], 1)[order].int().contiguous()
    if in_two:
        return Work(tile_rows * heads, items, in_two=True, flags=flags)
    chosen = split.nonzero().flatten()
    splits = torch.stack([chosen // tile_rows, chosen % tile_rows, first_partial[chosen], parts[chosen]], 1).int().contiguous()
    return Work(tile_rows * heads, items, splits if len(splits) else None, int(split_parts.sum()))


def packed_records(component: Component, name: str) -> Tensor:
    """[U * tile rows, 8] int32, what a program of a whole tile row (or column) reads, side by side.

    Its first entry, the first masked one, the first bit-masked one, the end, the tile of the first entry, and three places that
    only lists of items use.
    """

    def make() -> Tensor:
        lists: Lists = getattr(component, name)
        start = lists.start.flatten()
        masked = start + lists.full.flatten()
        bits = masked + lists.band.flatten()
        tile = lists.index[start.clamp(max=len(lists.index) - 1).long()] if len(lists.index) else start
        record = [start, masked, bits, start + lists.count.flatten(), tile, start, start, start]
        return torch.stack(record, -1).contiguous()

    return _records.get(component, name, make)


def entry_details(component: Component, name: str) -> Tensor | None:
    """[entries] int32, or None where all tiles are full: for a band its four bounds, a byte each (see masks.band_keeps), else
    the number of the mask."""
    if component.dynamic or len(component.masks) == 0:
        return None

    def make() -> Tensor:
        lo, hi, last_m, last_n = component.band.int().unbind(1)
        number = torch.arange(len(lo), dtype=torch.int32, device=lo.device)
        bounds = (lo << 24) | ((hi & 0xFF) << 16) | (last_m << 8) | last_n
        detail = torch.where(number < component.bands, bounds, number)
        return detail[getattr(component, name).kind.clamp(min=0).long()]

    return _details.get(component, name, make)


def packed_masks(component: Component) -> Tensor:
    """[M, block_q, ceil(block_k / 32)] int32: bit n % 32 of word n // 32 is place n of the key block."""
    return _packed.get(component, (), lambda: pack_bits(component.masks))


class Visits(NamedTuple):
    """Which tiles a program visits, and their tokens. See `visits_of`."""

    RECORDS: Tensor | None
    INDEX: Tensor
    DETAIL: Tensor | None
    MASKS: Tensor | None
    Q_INDEX: Tensor | None
    K_INDEX: Tensor | None
    GROUP: Tensor
    MERGE: Tensor
    ITEMS: Tensor | None


def visits_of(component: Component, name: str, items: Tensor | None, listed: bool) -> Visits:
    """A component's `rows` or `columns` as kernels take them; with `listed`, the work items hold all that the records do."""
    return Visits(
        None if listed else packed_records(component, name),
        getattr(component, name).index,
        entry_details(component, name),
        packed_masks(component) if has_bits(component) else None,
        component.q_index,
        component.k_index,
        component.group,
        component.merge,
        items,
    )


def has_bits(component: Component) -> bool:
    """Whether some masks are no bands."""
    return len(component.masks) > component.bands


def one_group(component: Component) -> bool:
    """Whether all heads and batch elements share one set of lists."""
    if component.rows.start.shape[0] != 1 or component.batch_groups:
        return False
    if component.dynamic:
        return True
    return _one_group.get(component, (), lambda: bool((component.group == 0).all()))


class Steps(NamedTuple):
    """Tiles whose tokens are computed instead of looked up: runs of `run` tokens, `step` tokens apart, from `first` on.

    Residue classes are runs of one, with `per` tiles a class. A run of 0 is the natural order.
    """

    step: int
    q_run: int
    q_per: int
    q_first: int
    k_run: int
    k_per: int
    k_first: int


def stepped(component: Component) -> Steps | None:
    """The steps of a component whose tiles run through residue classes, or whose gathered keys lie in equal steps."""
    if component.dynamic or component.k_index is None:
        return None
    return _stepped.get(component, (), lambda: _steps(component))


def _steps(component: Component) -> Steps | None:
    if step := component.stride:
        queries = _stepped_side(component.q_index, step, component.q_blocks, component.block_q)
        keys = _stepped_side(component.k_index, step, component.k_blocks, component.block_k)
        return None if queries is None or keys is None else Steps(step, 1, *queries, 1, *keys)
    if component.even is None or component.k_blocks * component.block_k * component.even[0] >= 1 << 31:  # in 32 bits
        return None
    step, run, first = component.even
    return Steps(step, 0, 1, component.q_start, run, ONE_CLASS, first)


def _stepped_side(index: Tensor | None, step: int, tiles: int, block: int) -> tuple[int, int] | None:
    if index is None or tiles % step:
        return None
    place = index.view(step, tiles // step * block).long()
    rows = torch.arange(step, device=index.device)[:, None] + step * torch.arange(place.shape[1], device=index.device)
    # Any token tells the first row; a place without one must compute to a row that does not exist.
    shift = torch.where(place >= 0, place - rows, -(1 << 40)).max()
    rows = rows + shift
    exists = (rows >= 0) & (rows <= place.max())
    return (tiles // step, int(shift)) if bool((torch.where(exists, rows, -1) == place).all()) else None
