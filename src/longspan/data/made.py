"""Labelled sequences that are made rather than read: generated once, by several processes, and kept as arrays.

Legend: N sequences.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from longspan.data.cache import built

Make = Callable[[int, str, int], tuple[np.ndarray, int]]  # (seed, split, number) -> tokens, class
CHUNK = 64  # sequences that a process makes at a time
FEW = 2048  # sequences for which no process is worth starting
TOLD_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Made:
    """N sequences end to end, memory-mapped: sequence n is tokens[offsets[n] : offsets[n + 1]], of class targets[n]."""

    tokens: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray

    @classmethod
    def load(cls, folder: Path, split: str) -> Made:
        """A split that `kept` has built."""
        return cls(
            np.load(folder / f"{split}.tokens.npy", mmap_mode="r"),
            np.load(folder / f"{split}.offsets.npy"),
            np.load(folder / f"{split}.targets.npy"),
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> np.ndarray:
        return np.asarray(self.tokens[self.offsets[number] : self.offsets[number + 1]])


def kept(kind: str, settings: Mapping[str, Any], make: Make, seed: int, sizes: Mapping[str, int]) -> dict[str, Made]:
    """Every split's sequences, made unless they were made before.

    Args:
        kind, settings: see `longspan.data.cache.built`; what `make` depends on.
        sizes: sequences of each split.
    """

    def build(folder: Path) -> None:
        for split, size in sizes.items():
            rows = list(_with_progress(f"{kind}, {split}", size, _made(make, seed, split, size)))
            lengths = np.array([len(tokens) for tokens, _ in rows], dtype=np.int64)
            np.save(folder / f"{split}.tokens.npy", np.concatenate([tokens for tokens, _ in rows]))
            np.save(folder / f"{split}.offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
            np.save(folder / f"{split}.targets.npy", np.array([target for _, target in rows], dtype=np.int64))

    folder = built(kind, {**settings, "seed": seed, "sizes": dict(sizes)}, build)
    return {split: Made.load(folder, split) for split in sizes}


def _made(make: Make, seed: int, split: str, size: int) -> Iterator[tuple[np.ndarray, int]]:
    processes = os.cpu_count() or 1
    if size <= FEW or processes == 1:
        yield from (make(seed, split, number) for number in range(size))
        return
    chunks = [range(first, min(size, first + CHUNK)) for first in range(0, size, CHUNK)]
    # spawned: forking a process in which torch runs threads can hang
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            for part in pool.map(partial(_chunk, make, seed, split), chunks):
                yield from part
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _chunk(make: Make, seed: int, split: str, numbers: range) -> list[tuple[np.ndarray, int]]:
    return [make(seed, split, number) for number in numbers]


def _with_progress(title: str, size: int, rows: Iterator[Any]) -> Iterator[Any]:
    """The rows; every few seconds a line on stderr says how many there are and how long the rest takes."""
    began = last_said = time.monotonic()
    for number, row in enumerate(rows, start=1):
        yield row
        now = time.monotonic()
        if now - last_said > TOLD_EVERY:
            last_said, left = now, (now - began) / number * (size - number)
            print(f"{title}: {number:,} of {size:,} made, about {left / 60:.1f} minutes more", file=sys.stderr)
