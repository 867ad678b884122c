"""Tile sizes and launches of selected attention's kernels, by head width, dtype and block size: the place to change them."""

from __future__ import annotations

from dataclasses import dataclass

from longspan_kernels.launch.launcher import Launch

WIDEST_KEYS = 128  # keys of a tile: blocks up to here are loaded once for all their queries
MERGE = Launch(4, 1)
MERGED_ROWS = 16  # tokens of a program that merges
SUMMED_KEYS = 16  # keys of a program that adds up the runs of a list
PART_BYTES = 2  # memory of the parts of picks: times that of q, in the backward pass
FORWARD_PART_BYTES = 4  # a step of NSA needs 11 times q in its backward pass, and 3 times q and this in its forward pass
LEAST_PART_BYTES = 64 << 20  # below which memory does not matter
WORK_ITEMS = 1024  # programs of a pass over lists that fill any device
FORWARD_TILES = 8  # tiles of queries a program of the forward pass serves with one load of the keys


@dataclass(frozen=True)
class Tile:
    """Rows (gathered queries) x keys, and how the kernel over such tiles is launched."""

    rows: int
    keys: int
    launch: Launch


def width_of_keys(block_size: int, most: int) -> int:
    return max(16, min(most, 1 << (block_size - 1).bit_length()))


def importance_tile(width: int, itemsize: int, group: int) -> Tile:
    """Scores by which blocks are chosen: queries x blocks. Of one head a group, the pipeline would hold five tiles of keys."""
    if itemsize == 2 and width <= 64 and group > 1:
        return Tile(64, 64, Launch(4, 3))
    return Tile(32 if itemsize == 4 or width > 128 else 64, 32, Launch(4, 2))


def forward_tile(width: int, itemsize: int, block_size: int) -> Tile:
    if itemsize == 4:
        return Tile(32, width_of_keys(block_size, 64 if width <= 64 else 32), Launch(4, 1))
    if block_size <= WIDEST_KEYS:
        return Tile(64, width_of_keys(block_size, WIDEST_KEYS), Launch(4, 2))
    if width <= 64:
        return Tile(64, 64, Launch(4, 3))
    return Tile(128, 64, Launch(8, 3 if width <= 128 else 2))


def columns_tile(width: int, itemsize: int, block_size: int) -> Tile:
    """dk and dv, and parts of dq where a block is one tile."""
    if itemsize == 4:
        return Tile(32, width_of_keys(block_size, 64 if width <= 64 else 32), Launch(4, 1))
    if block_size <= WIDEST_KEYS:
        keys = width_of_keys(block_size, WIDEST_KEYS)
        return Tile(64 if width <= 128 else 32, keys, Launch(8 if keys > 64 or width > 64 else 4, 2 if width <= 128 else 1))
    if width <= 64:
        return Tile(64, 64, Launch(4, 4, registers=168))
    return Tile(64 if width <= 128 else 32, 128, Launch(8, 2 if width <= 128 else 1))


def rows_tile(width: int, itemsize: int, block_size: int) -> Tile:
    """dq, where a block is several tiles."""
    if itemsize == 4:
        return Tile(32, width_of_keys(block_size, 64 if width <= 64 else 32), Launch(4, 1))
    return Tile(64, 64, Launch(4, 3 if width <= 64 else 2))


SCORE_BYTES = 512 << 20  # of index scores, and of what selects among them, held at a time
MOST_SCORE_BYTES = 768 << 20  # where that is at most a 16th of all: each time costs 50 us, and a backward pass holds more
HELD_HEADS = 4  # queries of so many indexer heads stay in shared memory
MOST_LANES = 16384  # that a program holds in registers
MARKED_SCORES = 2048  # of a row that a program marks at a time
MARKED_WORDS = 128  # of 32 marks that it reads at a time, one a thread
SCORES_A_STEP = 1024  # of a row where its marks do not help


def index_tile(width: int, itemsize: int) -> Tile:
    """Index scores: queries x keys."""
    if itemsize == 2 and width <= 128:
        return Tile(64, 64, Launch(4, 3 if width <= 64 else 2))
    return Tile(32, 32, Launch(4, 1))


def lanes(picks: int, keys: int) -> int:
    """Some times as many as picks: with 4 times, a bound that 1.2 times as many random scores reach as are picked."""
    return max(keys, min(MOST_LANES, 1 << (4 * picks - 1).bit_length()))


def score_bytes(batch: int, length: int) -> int:
    """Of index scores, and of what selects among them, held at a time."""
    return max(SCORE_BYTES, min(MOST_SCORE_BYTES, batch * length * length // 4))


def selecting(lanes: int) -> Launch:
    """The launch of a program that selects from one row."""
    return Launch(max(4, min(16, lanes // 1024)), 1, registers=64)


TOKEN_BYTES = 512 << 20  # of the rows that picks of single tokens add to dk and dv, held at a time
ADDED_ROWS = 16  # of them that a program sums at a time
TOKEN_LIST_BYTES = 128 << 20  # of the lists by which they are put into the order of tokens


def tokens_tile(width: int, itemsize: int) -> Tile:
    """Attention to tokens chosen one by one: the rows are the heads of one query."""
    if itemsize == 2 and width <= 64:
        return Tile(16, 32, Launch(1, 3))
    return Tile(16, 64 if itemsize == 2 else 32, Launch(4, 1))


def token_gradients_tile(width: int, itemsize: int) -> Tile:
    """Their gradients. So few warps take none of Hopper's instructions for products, which go wrong for few columns."""
    return Tile(16, 32, Launch(1 if width <= 64 else 2, 3 if width <= 64 else 2) if itemsize == 2 else Launch(4, 1))
