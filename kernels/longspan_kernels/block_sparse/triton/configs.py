"""Tile sizes, warps and pipeline depths, by head width, dtype, compute capability and what a pattern visits.

Nothing is searched at run time. A tile fits its operands in the shared memory of the capability; the pipeline is as deep as
what is left allows. The tables are what `scripts/benchmark.py --tune` prints, for numbers of two bytes and, but for "wide"
launches, tiles of 64 x 64. A capability (its major number) or key that is not there takes the rule in `launch_of`. Keys are
(kernel, head width rounded up to 64 or 128, kind of rows): see `row_kind`. A "wide" launch has a tile of its own, for dense
patterns. "gathered" ones are by hand, between the best that the search found for few gathered keys and what suited many;
"steps" were searched on Fixed(128, 32), causal, T = 16384.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.compiler import Tiling
from longspan_kernels.block_sparse.layout import Component
from longspan_kernels.block_sparse.triton.schedule import has_bits, stepped
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import Launch, capability_of, width_of

Table = dict[tuple[str, int, str], Launch]

HOPPER: Table = {
    ("forward", 64, "short"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("forward", 64, "blocks"): Launch(4, 2, by_tma=True, registers=96),
    ("forward", 64, "bits"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("forward", 64, "gathered"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("forward", 64, "middle"): Launch(4, 3, one_loop=True),
    ("forward", 64, "long"): Launch(4, 2, by_tma=True),
    ("forward", 64, "steps"): Launch(4, 3, by_tma=True, registers=128),
    ("forward", 128, "short"): Launch(4, 3, one_loop=True, by_tma=True),
    ("forward", 128, "blocks"): Launch(4, 3, by_tma=True),
    ("forward", 128, "bits"): Launch(4, 2, one_loop=True, by_tma=True),
    ("forward", 128, "gathered"): Launch(4, 3, one_loop=True, by_tma=True),
    ("forward", 128, "middle"): Launch(4, 3, one_loop=True, by_tma=True),
    ("forward", 128, "long"): Launch(4, 3),
    ("forward", 128, "steps"): Launch(4, 3),
    ("backward_rows", 64, "short"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("backward_rows", 64, "blocks"): Launch(4, 3, by_tma=True, registers=168),
    ("backward_rows", 64, "bits"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("backward_rows", 64, "gathered"): Launch(4, 3, one_loop=True, by_tma=True),
    ("backward_rows", 64, "middle"): Launch(4, 3, by_tma=True, registers=168),
    ("backward_rows", 64, "long"): Launch(4, 3, by_tma=True, registers=128),
    ("backward_rows", 64, "steps"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("backward_rows", 128, "short"): Launch(4, 2, by_tma=True),
    ("backward_rows", 128, "blocks"): Launch(4, 2, by_tma=True),
    ("backward_rows", 128, "bits"): Launch(4, 2, one_loop=True, by_tma=True),
    ("backward_rows", 128, "gathered"): Launch(4, 2, one_loop=True, by_tma=True),
    ("backward_rows", 128, "middle"): Launch(4, 2, one_loop=True, by_tma=True),
    ("backward_rows", 128, "long"): Launch(4, 2, by_tma=True),
    ("backward_rows", 128, "steps"): Launch(4, 2, one_loop=True, by_tma=True),
    ("backward_columns", 64, "short"): Launch(4, 2, one_loop=True, by_tma=True, registers=168, in_sums=True),
    ("backward_columns", 64, "blocks"): Launch(4, 3, by_tma=True, registers=168, in_sums=True),
    ("backward_columns", 64, "bits"): Launch(4, 2, one_loop=True, by_tma=True, registers=168, in_sums=True),
    ("backward_columns", 64, "gathered"): Launch(4, 3, by_tma=True, registers=168, serial_masks=True, in_sums=True),
    ("backward_columns", 64, "middle"): Launch(4, 3, by_tma=True, registers=168, serial_masks=True, in_sums=True),
    ("backward_columns", 64, "long"): Launch(4, 3, by_tma=True, registers=168, serial_masks=True, in_sums=True),
    ("backward_columns", 64, "steps"): Launch(4, 3, by_tma=True, registers=168, serial_masks=True, in_sums=True),
    ("backward_columns", 128, "short"): Launch(4, 2, one_loop=True, by_tma=True, in_sums=True),
    ("backward_columns", 128, "blocks"): Launch(4, 2, by_tma=True),
    ("backward_columns", 128, "bits"): Launch(4, 2, one_loop=True, by_tma=True, in_sums=True),
    ("backward_columns", 128, "gathered"): Launch(4, 2, by_tma=True, serial_masks=True),
    ("backward_columns", 128, "middle"): Launch(4, 2, by_tma=True),
    ("backward_columns", 128, "long"): Launch(4, 2, by_tma=True, serial_masks=True),
    ("backward_columns", 128, "steps"): Launch(4, 2, by_tma=True, serial_masks=True),
    ("backward_rows", 128, "wide"): Launch(8, 3, by_tma=True, tile=(128, 64)),
}

TABLES: dict[int, Table] = {9: HOPPER}

# KiB of shared memory a program may use, by compute capability; others by the nearest below.
SHARED = {(7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}
SMALLEST = 16
SHORT_ROWS = 12  # entries of a typical tile row up to which its start and end cost more than what lies between
MIDDLE_ROWS = 40  # and up to which they still show


def shared_memory(capability: tuple[int, int]) -> int:
    """Bytes of shared memory one program may use."""
    known = [c for c in sorted(SHARED) if c <= tuple(capability)]
    return SHARED[known[-1] if known else (7, 5)] * 1024


def fitting(block: int, of: int | None) -> int:
    """The largest power of two up to `block` that divides `of`; `block` itself where `of` is None."""
    if not of:
        return block
    return max(SMALLEST, min(block, of & -of))


@remembered(1024)
def tilings(
    head_dim: int,
    dtype: torch.dtype,
    device_capability: tuple[int, int] = (9, 0),
    granularity: int | None = None,
    bias_block: int = 0,
) -> tuple[Tiling, Tiling]:
    """Tiles for the forward and the backward pass.

    Args:
        granularity: the block size that a pattern speaks of, if any; tiles divide it where they can.
        bias_block: side of the blocks of a bias; tiles must divide it.

    Raises:
        KernelError: a bias block that no tile divides.
    """
    if bias_block and bias_block % SMALLEST:
        raise KernelError(f"bias blocks of {bias_block}: they must be a multiple of {SMALLEST} for the triton backend")
    budget, row_bytes = shared_memory(device_capability), width_of(head_dim) * dtype.itemsize

    def side(operands: int) -> Tiling:
        block = 64 if dtype.itemsize == 2 else 32
        # Two rounds of the operands that stream in, beside those that stay.
        while block > SMALLEST and (2 + 2 * operands) * block * row_bytes > budget:
            block //= 2
        own = fitting(fitting(block, granularity), bias_block)
        # One side for residue classes of every length, so that a new length compiles nothing; short classes share a tile.
        return Tiling(own, own, sizes=(block,), one_pass=bias_block > 0)

    return side(2), side(4)


def _major(device: torch.device) -> int:
    return capability_of(device)[0] if device.type == "cuda" else 0


def wide_tiling(kernel: str, q: Tensor, granularity: int | None, bias_block: int, device: torch.device) -> Tiling | None:
    """Larger tiles for a kernel over dense patterns, where the table has any that divide what a call speaks of."""
    if q.dtype.itemsize > 2 or q.shape[3] > 128:
        return None
    found = TABLES.get(_major(device), {}).get((kernel, 128 if q.shape[3] > 64 else 64, "wide"))
    if found is None or found.tile is None or bias_block or (granularity and granularity % max(found.tile)):
        return None
    return Tiling(*found.tile, sizes=(64,))


_chosen: dict[str, Launch] = {}
_typical: Derived[float] = Derived()


@contextmanager
def launched_as(**kernels: Launch) -> Iterator[None]:
    """Overrides the launch table: launched_as(forward=Launch(8, 3)). Components keep their launches: measure on a copy."""
    before = dict(_chosen)
    _chosen.update(kernels)
    try:
        yield
    finally:
        _chosen.clear()
        _chosen.update(before)


def row_kind(component: Component) -> str:
    """The row of the launch table for a component: "gathered", "steps", "long", "middle", "bits", "blocks" or "short".

    "gathered" keys or queries are a subset; keys gathered in equal steps, more than one tile of them, are "steps". Rows that
    grow with the length are "long"; others go by their median. Short rows are "bits" with masks that are no bands, "blocks"
    without any mask, else "short". The kind depends on the pattern and not on the length, so that another length compiles
    nothing.
    """
    if not component.dynamic and not (component.covers and component.all_keys):
        return "gathered" if stepped(component) is None else "steps"
    if component.grows:
        return "long"
    typical = _typical_row(component)
    if typical > SHORT_ROWS:
        return "middle" if typical <= MIDDLE_ROWS else "long"
    if component.dynamic or len(component.masks):
        return "bits" if has_bits(component) else "short"
    return "blocks"


def _typical_row(component: Component) -> float:
    lists = component.rows
    if component.dynamic:  # nothing may wait for the device
        return len(lists.index) / max(1, lists.start.numel())

    def median() -> float:
        visited = lists.count[lists.count > 0]
        return float(visited.median()) if len(visited) else 0.0

    return _typical.get(component, (), median)


def launch_of(kernel: str, q: Tensor, component: Component, device: torch.device | None = None) -> Launch:
    """How to launch "forward", "backward_rows" or "backward_columns" over a component's tiles; q may lie on another device."""
    if kernel in _chosen:
        return _chosen[kernel]
    area = component.block_q * component.block_k
    if q.dtype.itemsize > 2 or q.shape[3] > 128:
        return Launch(8 if area >= 64 * 64 else 4, 2)
    width = 128 if q.shape[3] > 64 else 64
    table, tile = TABLES.get(_major(device or q.device), {}), (component.block_q, component.block_k)
    wide = table.get((kernel, width, "wide"))
    if wide is not None and wide.tile == tile:
        return wide
    if tile == (64, 64) and (found := table.get((kernel, width, row_kind(component)))) is not None:
        return found
    return Launch(4 if area <= 64 * 64 else 8, 2 if width == 128 and kernel != "forward" else 3)
