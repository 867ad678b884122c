"""The Triton kernel that cuts lists of queries into work items. Triton is imported here: import this file lazily."""

from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.selected.triton.common import VARYING


@triton.jit(do_not_specialize=VARYING)
def cut_lists(
    START,
    LISTS,
    ITEMS,
    length: tl.int32,
    items: tl.int32,
    entries: tl.int32,
    BL: tl.constexpr,
    BI: tl.constexpr,
    SIZE: tl.constexpr,
    LEAST: tl.constexpr,
):
    """LISTS [rows, nb, 4]: a list's first place, its end, its first item, its first partial result or -1; ITEMS [rows, items]:
    the block of each item, nb for none. One program a row; a list has LEAST items or more, and partial results if several."""
    list_row = tl.program_id(0)
    blocks = (length + SIZE - 1) // SIZE
    block = tl.arange(0, BL)
    real = block < blocks
    start = tl.load(START + list_row * blocks + block, mask=real, other=0)
    stop = tl.load(START + list_row * blocks + block + 1, mask=real, other=0)
    runs = (stop - start + entries - 1) // entries
    several = tl.where(runs > 1, runs, 0)
    mine = tl.where(real, tl.maximum(runs, LEAST), 0)
    first = tl.cumsum(mine, 0) - mine
    partial = tl.where(runs > 1, tl.cumsum(several, 0) - several, -1)
    here = LISTS + (list_row * blocks + block) * 4
    tl.store(here, start, mask=real)
    tl.store(here + 1, stop, mask=real)
    tl.store(here + 2, first, mask=real)
    tl.store(here + 3, partial, mask=real)
    own = ITEMS + list_row * items
    for run in tl.range(0, tl.max(mine)):
        tl.store(own + first + run, block, mask=run < mine)
    for begin in tl.range(tl.sum(mine), items, BI):
        item = begin + tl.arange(0, BI)
        tl.store(own + item, tl.full([BI], 0, tl.int32) + blocks, mask=item < items)
