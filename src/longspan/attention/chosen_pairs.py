"""Counts the live pairs of queries that each pick the same number of key blocks, their own among them.

Legend: T tokens, n picks a query.
"""

from __future__ import annotations


def picked_pairs(length: int, block_size: int, picks: int, causal: bool) -> int:
    """Live pairs of one head. Causal, how many blocks a query picks does not depend on what it holds, and all but its own are
    whole. Both ways, a pick of the last block counts as a whole one though it may be cut short."""
    blocks, pairs = -(-length // block_size), 0
    for block in range(blocks):
        tokens = min(block_size, length - block * block_size)
        others = min(picks - 1, block if causal else blocks - 1) * block_size
        pairs += tokens * others + tokens * (tokens + 1) // 2 if causal else tokens * min(length, tokens + others)
    return pairs
