"""Training windows that are drawn anew each epoch: anywhere in the training regions, or moved a little from their places.

Legend: T = `max_length`, W windows an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.corpus import Corpus, Region, WindowDataset, cut_windows


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How training windows are placed. `windows`: "tiled", side by side, or "random", `epoch_windows` anywhere an epoch.

    `jitter`: tiled windows are moved by up to so many tokens either way, drawn anew each epoch.
    """

    windows: str = "tiled"
    epoch_windows: int = 4096
    jitter: int = 0

    def __post_init__(self) -> None:
        settings.choice("windows", self.windows, ("tiled", "random"))
        settings.whole("epoch_windows", self.epoch_windows, 1)
        settings.whole("jitter", self.jitter, 0)
        if self.jitter and self.windows == "random":
            raise wrong_value("data.jitter", self.jitter, "data.windows=random places windows anywhere; set one of the two")

    def dataset(self, corpus: Corpus, regions: Sequence[Region], length: int, stride: int, seed: int, limit: int | None) -> Any:
        """The training windows, or None where they are tiled and stay in their places."""
        if self.windows == "random":
            return RandomWindows(corpus, regions, length, seed, size=limit or self.epoch_windows, endless=limit is None)
        if self.jitter:
            return JitteredWindows(corpus, regions, length, stride, seed, self.jitter).keep(limit)
        return None


class DrawnWindows(WindowDataset):
    """Windows each of which is a function of (seed, index) alone, where an index past the size is of a later epoch."""

    endless = True
    windows_an_epoch: int

    def __len__(self) -> int:
        return self.windows_an_epoch

    def placed(self, index: int) -> tuple[int, int, int]:
        """(document, start, length) of a window."""
        raise NotImplementedError(f"{type(self).__name__} defines no placed(index)")

    def __getitem__(self, index: int) -> dict:
        return self.item(*self.placed(index))


class RandomWindows(DrawnWindows):
    """W windows of T tokens an epoch, every start in the regions alike likely; a region shorter than T is one window.

    `windows` are those that tile the regions, for what counts symbols. Not `endless`: the same W in each epoch.
    """

    def __init__(
        self, corpus: Corpus, regions: Sequence[Region], max_length: int, seed: int, *, size: int, endless: bool = True
    ):
        super().__init__(corpus, cut_windows(regions, max_length, max_length))
        self.regions, self.max_length, self.seed = np.array(regions, dtype=np.int64).reshape(-1, 3), max_length, seed
        self.windows_an_epoch, self.endless = size if len(regions) else 0, endless
        starts = np.maximum(self.regions[:, 2] - self.regions[:, 1] - max_length, 0) + 1
        self.ends = np.cumsum(starts)

    def placed(self, index: int) -> tuple[int, int, int]:
        if not self.endless:
            index %= self.windows_an_epoch
        at = int(np.random.default_rng([self.seed, 0x57A7, index]).integers(self.ends[-1]))
        place = int(np.searchsorted(self.ends, at, side="right"))
        document, begin, end = (int(value) for value in self.regions[place])
        start = begin + at - (int(self.ends[place - 1]) if place else 0)
        return document, start, min(self.max_length, end - start)


class JitteredWindows(DrawnWindows):
    """Tiled windows, each moved by up to `jitter` tokens either way, within its region."""

    def __init__(self, corpus: Corpus, regions: Sequence[Region], max_length: int, stride: int, seed: int, jitter: int):
        parts = [cut_windows([region], max_length, stride) for region in regions]
        super().__init__(corpus, np.concatenate(parts) if parts else np.zeros((0, 3), dtype=np.int64))
        counts = [len(part) for part in parts]
        self.bounds = np.repeat(np.array(regions, dtype=np.int64).reshape(-1, 3)[:, 1:], counts, axis=0)  # (W, 2)
        self.seed, self.jitter, self.windows_an_epoch = seed, jitter, len(self.windows)

    def placed(self, index: int) -> tuple[int, int, int]:
        document, start, length = (int(value) for value in self.windows[index % self.windows_an_epoch])
        begin, end = (int(value) for value in self.bounds[index % self.windows_an_epoch])
        moved = start + int(np.random.default_rng([self.seed, 0x717, index]).integers(-self.jitter, self.jitter + 1))
        return document, min(max(moved, begin), end - length), length

    def keep(self, limit: int | None) -> WindowDataset:
        if limit is not None and len(self.windows) > limit:
            chosen = np.linspace(0, len(self.windows) - 1, limit).round().astype(np.int64)
            self.windows, self.bounds, self.windows_an_epoch = self.windows[chosen], self.bounds[chosen], limit
        return self
