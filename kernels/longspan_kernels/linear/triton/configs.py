"""Tile sizes and launches of the kernels of linear attention, by hand until a search has run; this is the one file of them.

Legend: BM (C for the delta rule) tokens a chunk, BX width of x and y rounded up, BZ columns of z a program.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan_kernels.launch.launcher import Launch, capability_of

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


DELTA_KERNELS = (
    *("invert_systems", "make_operands", "run_states", "read_states"),
    *("local_gradients", "run_states_back", "finish_gradients"),
)


def on_hopper(device: torch.device) -> bool:
    """Whether kernels are compiled for compute capability 9."""
    return device.type == "cuda" and capability_of(device)[0] == 9


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
    if dtype == torch.float32:
        alone = DeltaTile(32 if width <= 128 else 16, Launch(4, 1))
        return DeltaTiles(32 if width <= 64 else 16, dict.fromkeys(DELTA_KERNELS, alone))
    # Programs that go from chunk to chunk wait for memory: as deep a pipeline as fits.
    along = DeltaTile(32, Launch(4, 3 if width <= 128 else 1))
    parallel = DeltaTile(64, Launch(4 if width <= 64 else 8, 2 if width <= 128 else 1))
    return DeltaTiles(
        64,
        {
            "invert_systems": DeltaTile(64, Launch(1, 1)),
            "make_operands": DeltaTile(64, Launch(4, 1)),
            "run_states": along,
            "read_states": parallel,
            "local_gradients": parallel,
            "run_states_back": along,
            "finish_gradients": DeltaTile(64, Launch(4 if width <= 64 else 8, 1)),
        },
    )
