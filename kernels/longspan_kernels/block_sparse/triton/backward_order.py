"""Which pass of the backward goes first, what it leaves to the other, and where partial results lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Call, width_of
from longspan_kernels.block_sparse.layout import Component, Layout
from longspan_kernels.block_sparse.triton.schedule import Work, work_of
from longspan_kernels.block_sparse.triton.tuning import lines_of
from longspan_kernels.launch.graphs import made_outside_graphs

# Up to this head width pieces of columns are kept as pairs of the gradient's dtype: no spills at 168 registers, where a float32
# store in the epilogue has the loop spill 88 bytes a thread. Wider ones have no registers to spare either way.
PAIRED_WIDTH = 64


@dataclass
class RowNumbers:
    """What the passes know of each query: lse, -delta, and what delta is made of.

    `left` says that the pass over rows, which works delta out from out and dout, writes -delta; else it was written before.
    With `pairs` [B, H, Tq, 2], it lies there too, beside lse in base 2. `read` says that the pass over rows reads it.
    """

    lse: Tensor
    minus_delta: Tensor
    out: Tensor
    dlse: Tensor | None
    left: bool
    pairs: Tensor | None = None
    read: bool = False

    def made_of(self) -> tuple[Tensor | None, Tensor | None]:
        """out and dlse, where the pass over rows works delta out from them."""
        return (None, None) if self.read else (self.out, self.dlse)


def rows_go_first(call: Call, layout: Layout, by_columns: list[Component]) -> bool:
    """Whether every row is visited, and no column cut, whose partial results would take memory of their own."""
    if not layout.covered or not by_columns or in_pairs(call, by_columns):
        return False

    def whole_columns() -> bool:
        works = (column_work(call, component, adds_up(number, component)) for number, component in enumerate(by_columns))
        return not any(work.slots for work in works) and not any(orders_keys_by_head(call, c) for c in by_columns)

    cache, key = by_columns[0].cache, ("rows go first", call.key)
    if key not in cache:
        cache[key] = made_outside_graphs(whole_columns, call.device, not by_columns[0].dynamic)
    return cache[key]


def in_pairs(call: Call, by_columns: list[Component]) -> bool:
    """Whether columns find lse and delta in pairs: for wide heads the one pass more costs less than the work on lse in a long
    loop."""
    return width_of(call.q.shape[3]) > PAIRED_WIDTH and any(component.grows for component in by_columns)


def rows_are_listed(call: Call) -> bool:
    """Whether rows are listed: their partial results take the memory that delta would."""
    components = call.layout.components
    if not components or any(component.dynamic for component in components):
        return False

    def any_list() -> bool:
        return any(row_work(call, component).items is not None for component in components)

    cache, key = components[0].cache, ("listed", call.key)
    if key not in cache:
        cache[key] = made_outside_graphs(any_list, call.device)
    return cache[key]


def row_work(call: Call, component: Component) -> Work:
    everything, whole = call.layout.covered and component.covers, lines_of(component) == "blocks"
    return work_of(component, "rows", 1, call.q.shape[0], everything=everything, whole=whole)


def column_work(call: Call, component: Component, adding: bool) -> Work:
    return work_of(component, "columns", call.share, call.q.shape[0], everything=not adding, in_two=steady(component))


def steady(component: Component) -> bool:
    """Whether a line is as long beside a fair share at any length: which kernel runs may depend on it then. Lines that grow
    with the length, or are gathered, are not."""
    return not component.grows and component.q_index is None and component.k_index is None


def adds_up(number: int, component: Component) -> bool:
    """Whether a component's columns add to what is there: all but the first, and one whose order has no place for some keys."""
    everywhere = component.k_index is None or component.order.startswith("residue")
    return number > 0 or not everywhere


def orders_keys_by_head(call: Call, component: Component) -> bool:
    """Whether heads that share keys each have an order of their own."""
    return component.k_index is not None and component.k_index.dim() == 2 and call.share > 1


class Room:
    """The memory of a contiguous tensor that is not written yet, for float32 numbers; memory of their own once it is full."""

    def __init__(self, x: Tensor, used: int = 0):
        self.x, self.used = x, used

    def take(self, *shape: int) -> Tensor:
        count = 4 * math.prod(shape)
        stop = self.used + count
        if stop > self.x.numel() * self.x.element_size():
            return torch.empty(shape, dtype=torch.float32, device=self.x.device)
        found = self.x.view(-1).view(torch.uint8)[self.used : stop].view(torch.float32).view(shape)
        self.used = -(-stop // 256) * 256
        return found

    def rest(self) -> Room:
        """What is not taken; what is taken from it does not count here."""
        return Room(self.x, self.used)
