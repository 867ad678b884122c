"""What a call of bucketed attention knows beside its tensors.

Legend: B batch, H heads, R rounds, T tokens, N = B H R sequences.
"""

from __future__ import annotations

from typing import NamedTuple


class Buckets(NamedTuple):
    """How tokens see each other; plain numbers, so that it travels through custom ops.

    Attributes:
        rounds: R; a pair that several rounds find belongs to the first of them.
        size: places of a chunk, a multiple of the tile.
        tile: places of a tile, a power of two, 16 or more.
        aligned: whether each bucket begins a chunk; else the sorted sequence is cut wherever a chunk is full.
        causal: only keys at or before the query.
        itself: whether a token sees itself.
        unit_keys: whether keys are the queries brought to unit length; else the queries as they are.
        unit_queries: whether queries are brought to unit length too, as keys then are.
    """

    rounds: int
    size: int
    tile: int
    aligned: bool
    causal: bool
    itself: bool
    unit_keys: bool
    unit_queries: bool = False

    @classmethod
    def of(cls, numbers: list[int]) -> Buckets:
        """From what `numbers` gives: custom ops take no other kind of tuple."""
        rounds, size, tile, *choices = numbers
        aligned, causal, itself, unit_keys, unit_queries = map(bool, choices)
        return cls(rounds, size, tile, aligned, causal, itself, unit_keys, unit_queries)

    @property
    def numbers(self) -> list[int]:
        return [int(x) for x in self]

    @property
    def direct(self) -> bool:
        """Whether one round gives the output: there is nothing to merge, and no token sees nothing."""
        return self.rounds == 1 and self.itself
