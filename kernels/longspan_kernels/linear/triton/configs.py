"""Tile sizes and launches of the kernels of linear attention, by hand until a search has run; this is the one file of them.

Legend: BM (C for the delta rule) tokens a chunk, BX width of x and y rounded up, BZ columns of z a program.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan_kernels.launch.launcher import Launch

PROGRAMS = 4  # a processor: a sequence is cut into segments until there are about as many
LEAST_CHUNKS = 4  # a segment: below that, its state costs more than it saves


@dataclass(frozen=True)
class Tile:
    """A chunk of `tokens`, `columns` of z a program, and how the kernel is compiled."""

    tokens: int
    columns: int
    launch: Launch


# (kernel, up to this width) -> the tile; for 16-bit types
TILES: dict[tuple[str, int], Tile] = {
    ("states", 64): Tile(64, 64, Launch(4, 3)),
    ("states", 128): Tile(64, 64, Launch(4, 3)),
    ("states", 256): Tile(64, 64, Launch(4, 2)),
    ("attend", 64): Tile(64, 64, Launch(4, 3)),
    ("attend", 128): Tile(64, 64, Launch(8, 2)),
    ("attend", 256): Tile(64, 64, Launch(8, 1)),
}
WIDE = {64: (64, 2), 128: (32, 1), 256: (16, 1)}  # float32: width -> tokens a chunk, stages


def tile_for(kernel: str, width: int, columns: int, dtype: torch.dtype) -> Tile:
    """The tile of a kernel for x of this width and z of so many columns, each rounded up to a power of two."""
    at = next(limit for limit in (64, 128, 256) if width <= limit)
    tile = TILES[kernel, at]
    if dtype == torch.float32:
        tokens, stages = WIDE[at]
        tile = Tile(tokens, 32 if at > 64 else 64, Launch(8 if at > 64 else 4, stages))
    return Tile(tile.tokens, min(tile.columns, columns), tile.launch)


@dataclass(frozen=True)
class DeltaTile:
    """Columns of v at a time, and how a kernel of the delta rule is compiled."""

    columns: int
    launch: Launch


@dataclass(frozen=True)
class DeltaTiles:
    """Tokens a chunk, the same for all kernels of a call, and each kernel's own."""

    tokens: int
    kernels: dict[str, DeltaTile]


def delta_tiles(width: int, dtype: torch.dtype) -> DeltaTiles:
    """The tiles of the gated delta rule for heads of this width, by hand: whole states of a head are in registers."""
    narrow = dtype == torch.bfloat16
    warps = 4 if width <= 64 else 8
    tokens = 64 if narrow or width <= 64 else 32
    if width > 128 and not narrow:
        tokens = 16
    columns = 32 if width <= 128 else 16
    stages = 2 if narrow and width <= 128 else 1
    parallel = DeltaTile(64 if narrow else 32, Launch(warps, stages))
    along = DeltaTile(columns, Launch(4, stages))
    alone = DeltaTile(64 if narrow else 32, Launch(4, 1))
    return DeltaTiles(
        tokens,
        {
            "invert_systems": alone,
            "make_operands": alone,
            "run_states": along,
            "read_states": parallel,
            "local_gradients": parallel,
            "run_states_back": along,
            "finish_gradients": DeltaTile(parallel.columns, Launch(8, 1)),
        },
    )
