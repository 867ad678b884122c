"""Which program serves which line: long lines cut into pieces, heaviest pieces first.

A launch waits for its longest program. Where all lines of a component are about equally long, one program serves each line
in order. Otherwise the work is listed once, on the layout's device, and kept with the component.

Legend: a line is a row (its owner a head) or a column (its owner a key head); an entry is one tile to visit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.block_sparse.layout import Component, Lists

SHORTEST_SPLIT = 8  # entries; less is not worth a partial result
EVEN = 1.5  # longest line over the mean, up to which the order does not matter
PROGRAMS_PER_PROCESSOR = 2
# Where no line is longer than this part of a fair share, columns are cut at most in two, those above the second part of it.
IN_TWO, HALVED = 1.1, 0.33
WHOLE = 0.85  # part of a fair share up to which rows without masks end in time, started first
# Lines of few entries, and of little beside a fair share: their order hardly shows in when a launch ends.
LIGHT, LIGHT_ENTRIES = 0.05, 32
LAUNCH = 0.6  # of a fair share: the entries one after another in a launch, as more than two programs share a processor
# Even lines are cut where there are fewer of them a processor, and they are longer.
FEWEST_PROGRAMS, SHORTEST_CUT, USUAL_SIDE = 3, 32, 64


@dataclass
class Work:
    """The programs of one launch.

    Attributes:
        lines: of all owners, a program each where there are no items.
        items: [programs, 8] int32 (first entry, first masked, first bit-masked, end, tile of the first entry, owner, line,
            slot or -1), or None for one program a line: even lines, and lists made at run time. Where several heads share an
            owner, the first entry and the end count from the first entry of the first of them.
        splits: [n, 4] int32 (owner, line, first slot, pieces) of the lines that were cut, or None.
        partials: partial results for one batch element.
        in_two: lines are cut at most in two, and no results are partial: the second half adds to what the first has written.
            The slot of a first half is the number of its flag, that of a second one comes `flags` later.
        flags: lines cut in two, for one batch element.
    """

    lines: int
    items: Tensor | None = None
    splits: Tensor | None = None
    partials: int = 0
    in_two: bool = False
    flags: int = 0

    @property
    def cut(self) -> int:
        """Lines whose partial results are to be added up, for one batch element."""
        return 0 if self.splits is None else len(self.splits)

    def programs(self, batch: int) -> int:
        return (self.lines if self.items is None else len(self.items)) * batch


def processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2


def work_of(
    component: Component, name: str, share: int, batch: int, everything: bool, in_two: bool = False, whole: bool = False
) -> Work:  # fmt: skip
    """The programs for `rows` or `columns` of a component.

    Args:
        share: heads an owner: 1 for rows, H // Hkv for columns.
        everything: lines without entries need a program too (they write zeros).
        in_two: whether halves of a line may add up in the dtype of the result, which rounds once more.
        whole: whether lines up to WHOLE are left whole.
    """
    lists: Lists = getattr(component, name)
    owners, lines = len(component.group) // share, lists.start.shape[1]
    if component.dynamic:
        return Work(lines * owners)
    # The share of one processor decides how long a piece may be; rounded, so that batch sizes share schedules.
    key = ("work", name, share, (batch - 1).bit_length(), everything, in_two, whole)
    if key not in component.cache:
        groups = component.group.view(owners, share)
        side = component.block_q if name == "rows" else component.block_k
        component.cache[key] = _schedule(lists, name, groups, 1 << key[3], everything, in_two, whole, side)
    return component.cache[key]


def _schedule(
    lists: Lists, name: str, groups: Tensor, batch: int, everything: bool, in_two: bool, whole: bool, side: int
) -> Work:  # fmt: skip
    owners, lines = len(groups), lists.start.shape[1]
    served = groups >= 0
    counts = lists.count[groups.clamp(min=0).long()] * served[:, :, None]  # (owners, share, lines)
    weight = counts.sum(1).flatten()  # (owners * lines)
    total, longest = int(weight.sum()), int(weight.max())
    fair = batch * total / (PROGRAMS_PER_PROCESSOR * processors(weight.device))
    # A piece of half a fair share, started first, cannot keep the launch waiting.
    piece = max(SHORTEST_SPLIT, 1 << max(0, int(fair / 2)).bit_length() >> 1)
    if whole and longest <= WHOLE * fair:
        piece = max(piece, longest)
    # The ratio hardly follows the length, so that one kind of launch serves them all.
    in_two = in_two and longest <= IN_TWO * fair
    if in_two:
        piece = max(SHORTEST_SPLIT, int(HALVED * fair), -(-longest // 2))
    busy = int((weight > 0).sum())
    even = longest * max(busy, 1) <= EVEN * total and (everything or 2 * busy >= owners * lines)
    # A line of a larger tile has more warps, and counts as the lines that it holds.
    enough = batch * owners * lines * max(1, side // USUAL_SIDE) >= FEWEST_PROGRAMS * processors(weight.device)
    if even and (enough or longest <= max(piece, SHORTEST_CUT)):
        return Work(lines * owners)
    pieces = (weight + piece - 1) // piece
    if everything:
        # Rows of a head that this component does not serve are another's; the columns of a first component are its own.
        wanted = served.any(1) | (name == "columns")
        pieces = torch.maximum(pieces, wanted[:, None].expand(owners, lines).flatten().to(pieces.dtype))
    line_at = torch.arange(owners * lines, device=weight.device)
    first_item = torch.cumsum(pieces, 0) - pieces
    of = torch.repeat_interleave(line_at, pieces)
    part = torch.arange(len(of), device=weight.device) - first_item[of]
    begin = part * weight[of] // pieces[of].clamp(min=1)
    end = (part + 1) * weight[of] // pieces[of].clamp(min=1)
    cut = pieces > 1
    cut_pieces = torch.where(cut, pieces, 0)
    first_slot = torch.cumsum(cut_pieces, 0) - cut_pieces
    flags = int(cut.sum()) if in_two else 0
    slot = torch.where(cut[of], first_slot[of] // 2 + part * flags if in_two else first_slot[of] + part, -1)
    # Heaviest first, in coarse steps: within one the order stays that of memory. Light pieces go head by head, whose numbers
    # stay in the cache, but each as much earlier as it takes longer, so that all end together.
    owner, line = of // lines, of % lines
    # The pieces of a line count alike: the second half of one, which waits for the first, never starts before it.
    size = (weight[of] / pieces[of].clamp(min=1)).double()
    level = (2 * torch.log2(size.clamp(min=1))).round().long()
    light = size <= min(LIGHT * fair, LIGHT_ENTRIES)
    turn = (owner + 1) * (1 - size / max(1.0, LAUNCH * fair))
    order = torch.argsort(torch.where(light, turn, -level.double() - owners), stable=True)
    masked = bits = tile = torch.zeros_like(of)
    if groups.shape[1] == 1:
        at = (groups[:, 0].clamp(min=0).long()[owner], line)
        start = lists.start[at].long()
        masked, bits = start + lists.full[at], start + lists.full[at] + lists.band[at]
        begin, end = start + begin, start + end
        tile = lists.index[begin.clamp(max=len(lists.index) - 1)] if len(lists.index) else tile
    items = torch.stack([begin, masked, bits, end, tile, owner, line, slot], 1)[order].int().contiguous()
    if in_two:
        return Work(lines * owners, items, in_two=True, flags=flags)
    chosen = cut.nonzero().flatten()
    splits = torch.stack([chosen // lines, chosen % lines, first_slot[chosen], pieces[chosen]], 1).int().contiguous()
    return Work(lines * owners, items, splits if len(splits) else None, int(cut_pieces.sum()))
