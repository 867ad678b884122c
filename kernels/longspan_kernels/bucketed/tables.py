"""Orders of tokens by bucket, cut into chunks and tiles: one sort for all rounds, and nothing that waits for the device.

Legend: N sequences (batch, head and round of bucketing in one), R rounds, T tokens, C buckets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import op

MOST_PLACES = 1 << 31  # N * T, and N * (C + 1): 32 bits number them


def tile_for(size: int, width: int, itemsize: int) -> int:
    """Places of a tile, for chunks of `size` and heads of a width: a power of two that divides the size, 16 or more."""
    most = 64 if itemsize == 2 and 64 <= width <= 128 else 32
    return min(most, size & -size)


def count_tiles(length: int, buckets: int, tile: int, aligned: bool) -> int:
    """Places for tiles in the table of a sequence: every bucket wastes less than one."""
    return -(-length // tile) + (buckets if aligned else 0)


def rounds_padded(rounds: int) -> int:
    """The power of two that the numbers of a token in all rounds fill."""
    return 1 << (rounds - 1).bit_length()


def row_keys(bucket: Tensor, buckets: int) -> Tensor:
    """bucket [N, T], -1 for none -> the keys that `bucket_tables` sorts: [N, T] int32, n (C + 1) + bucket, C for none."""
    first = torch.arange(bucket.shape[0], device=bucket.device)[:, None] * (buckets + 1)
    return (torch.where(bucket < 0, buckets, bucket) + first).int()


def bucket_tables(
    keys: Tensor, rounds: int, buckets: int, size: int, tile: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sorts tokens by bucket, stably, and lays out tiles. Triton makes the tables: keys lie on a GPU, or it interprets.

    Args:
        keys: [N, T] int32, of `row_keys` or `hash_keys`; the rounds of a head stand one after another.
        rounds: R.
        buckets: C.
        size, tile, aligned: see `Buckets`.

    Returns:
        order [N, T] int32: tokens by bucket, those of none last.
        tiles [N, `count_tiles`, 4] int32: (the first place, the first place of the chunk before, or of the own one where there
            is none, the end of the bucket or of all tokens, the first place of the chunk) of each tile; zeros where there is
            none.
        numbers [N / R, T, `rounds_padded`] int32: a token sees another in a round where the difference of their numbers is 0 to
            `size`.
        start [N (C + 1) + 1] int32: where each key begins, in the orders of all sequences one after another.

    Raises:
        KernelError: more than 32 bits number.
    """
    N, T = keys.shape
    if max(N * T, N * (buckets + 1), T + 2 * size * buckets) >= MOST_PLACES:
        raise KernelError(f"{N:,} orders of {T:,} tokens in {buckets:,} buckets: more than 32 bits number; give fewer at once")
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _bucket_tables(keys, rounds, buckets, size, tile, aligned)
    return found


@op("bucket_tables")
def _bucket_tables(
    keys: Tensor, rounds: int, buckets: int, size: int, tile: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from longspan_kernels.bucketed.triton.tables import triton_tables

    return triton_tables(keys, rounds, buckets, size, tile, aligned)


@_bucket_tables.register_fake
def _(keys, rounds, buckets, size, tile, aligned):
    N, T = keys.shape
    start = keys.new_empty(N * (buckets + 1) + 1)
    table = keys.new_empty((N, count_tiles(T, buckets, tile, aligned), 4))
    return keys.new_empty(keys.shape), table, keys.new_empty((N // rounds, T, rounds_padded(rounds))), start
