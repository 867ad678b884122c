"""Random draws that belong to a sequence: the same whoever asks, in whatever order, in whatever batch.

Legend: B sequences drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# each split has streams of its own, so that no held-out sequence shares random bits with a training one
STREAMS = {"train": 0, "validation": 1, "test": 2}


class Draws:
    """One stream of random bits for each of B sequences, a function of (seed, split, index of the sequence) alone.

    Philox (Salmon et al. 2011) is a block cipher of a counter: the seed and the split are its key, the index is the
    upper part of its counter, so that no two streams overlap. Draws are taken one after the other, for all B at once.
    """

    def __init__(self, seed: int, split: str, indices: Sequence[int] | np.ndarray):
        # an int key of 128 bits: numpy turns a list into one by way of float64, which loses low bits
        key = (STREAMS[split] << 64) | (int(seed) % 2**64)
        self._streams = [np.random.Philox(key=key, counter=int(index) << 128) for index in indices]

    def __len__(self) -> int:
        return len(self._streams)

    def uniform(self, count: int) -> np.ndarray:
        """[B, count] float64, above 0 and below 1."""
        bits = np.stack([stream.random_raw(count) for stream in self._streams])
        return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def below(self, bound: int | np.ndarray, count: int) -> np.ndarray:
        """[B, count] int64, from 0 up to, not including, `bound`, which may differ by sequence, [B, 1]."""
        if isinstance(bound, int) and bound == 1:
            return np.zeros((len(self), count), dtype=np.int64)
        return (self.uniform(count) * bound).astype(np.int64)

    def distinct(
        self, population: int, count: int, *, available: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """[B, count] int64 below `population`, none twice in a sequence, in random order.

        `available` [B, 1]: only numbers below it. `weights` [population]: each next number is drawn in proportion to
        them (exponential clocks: the first to ring are the ones drawn).
        """
        clocks = -np.log(self.uniform(population))  # [B, population]
        if weights is not None:
            clocks /= weights
        if available is not None:
            clocks[np.arange(population) >= available] = np.inf
        if count < population:
            first = np.argpartition(clocks, count - 1, axis=1)[:, :count]
            order = np.argsort(np.take_along_axis(clocks, first, axis=1), axis=1)
            return np.take_along_axis(first, order, axis=1).astype(np.int64)
        return np.argsort(clocks, axis=1).astype(np.int64)
