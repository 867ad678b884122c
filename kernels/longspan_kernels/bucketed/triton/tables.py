"""Triton kernel that lays out the tables of bucketed attention behind one sort. Triton is imported here: import lazily.

Legend: N sequences, R rounds, RP a power of two that holds them, T tokens (length), C buckets, SIZE places of a chunk, BM of a
tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.bucketed.tables import count_tiles, rounds_padded
from longspan_kernels.launch.launcher import SMALL, from_16_bytes, on_its_device, run_kernel

PLACES = 512  # of a program


@triton.jit(do_not_specialize=["length", "buckets", "tiles", "rounds", "places"])
def lay_out_buckets(
    KEYS,
    INDEX,
    START,
    ORDER,
    TILES,
    NUMBERS,
    length: tl.int32,
    buckets: tl.int32,
    tiles: tl.int32,
    rounds: tl.int32,
    places: tl.int32,
    SIZE: tl.constexpr,
    BM: tl.constexpr,
    RP: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """KEYS [N T] in rising order, INDEX the place that each had before, START [N (C + 1) + 1] where each key begins."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < places
    n = place // length
    base = n * length
    key = tl.load(KEYS + place, mask=inside, other=0)
    first_key = n * (buckets + 1)
    bucket = key - first_key
    token = tl.load(INDEX + place, mask=inside, other=0).to(tl.int32) - base
    tl.store(ORDER + place, token, mask=inside)
    exists = inside & (bucket < buckets)
    at = place - base
    if ALIGNED:
        begin = tl.load(START + key, mask=exists, other=0) - base
        end = tl.load(START + key + 1, mask=exists, other=0) - base
    else:
        begin = at * 0
        end = tl.load(START + first_key + buckets, mask=exists, other=0) - base
    chunk = begin + (at - begin) // SIZE * SIZE
    # Chunks of a bucket lie SIZE apart, those of different buckets farther.
    cell = (n // rounds * length + token).to(tl.int64) * RP + n % rounds
    tl.store(NUMBERS + cell, chunk + 2 * SIZE * bucket, mask=inside)
    # Tiles of one bucket lie BM apart, and later buckets begin later: no two tiles have the same slot.
    slot = at // BM
    if ALIGNED:
        slot += bucket
    row = TILES + (n.to(tl.int64) * tiles + slot) * 4
    begins = exists & ((at - chunk) % BM == 0)
    tl.store(row, at, mask=begins)
    tl.store(row + 1, tl.maximum(begin, chunk - SIZE), mask=begins)
    tl.store(row + 2, end, mask=begins)
    tl.store(row + 3, chunk, mask=begins)


@on_its_device
def triton_tables(
    keys: Tensor, rounds: int, buckets: int, size: int, tile: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `tables.bucket_tables`."""
    (N, T), device = keys.shape, keys.device
    order, RP = torch.empty_like(keys), rounds_padded(rounds)
    numbers = torch.empty((N // rounds, T, RP), dtype=torch.int32, device=device)
    tiles = count_tiles(T, buckets, tile, aligned)
    table = torch.zeros((N, tiles, 4), dtype=torch.int32, device=device)
    sorted_keys, index = torch.sort(keys.flatten(), stable=True)
    every = torch.arange(N * (buckets + 1) + 1, dtype=torch.int32, device=device)
    start = torch.searchsorted(sorted_keys, every, out_int32=True)
    numbers_of = {"length": T, "buckets": buckets, "tiles": tiles, "rounds": rounds, "places": N * T}
    made_for = {"SIZE": size, "BM": tile, "RP": RP, "ALIGNED": aligned, "BLOCK": PLACES}
    tensors = (from_16_bytes(sorted_keys), from_16_bytes(index), start, order, table, numbers)
    run_kernel(lay_out_buckets, -(-N * T // PLACES), SMALL, *tensors, **numbers_of, **made_for)
    return order, table, numbers, start
