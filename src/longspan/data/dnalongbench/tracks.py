"""The base of the tasks with numbers along a sequence: its data sets, and which part of a sequence has numbers.

Legend: B batch, T = `max_length`, n bins with numbers, K tracks.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.corpus import spread
from longspan.data.encoded_genomes import EncodedGenome, MappedRecord
from longspan.data.sources import Document
from longspan.data.splits import SPLITS
from longspan.data.values import Loading, gathered
from longspan.data.vocabularies import NUCLEOTIDES

UNKNOWN = NUCLEOTIDES.encode_bytes(b"N")[0]
MEAN_OF = 32  # training sequences, evenly spaced, that the mean of each track is taken over
PAPER = "2501.01945"


class Bins(NamedTuple):
    """The bins of a window that have numbers: `held` of them, `size` bases each, after `margin` bases.

    `first` is the number, of those that the files have, of the first that is kept.
    """

    size: int
    held: int
    first: int
    margin: int


def bins_in(max_length: int, size: int, known: int, least: int = 1) -> Bins:
    """The bins, `least` or more, of a window of `max_length` bases, in whose middle the files have `known` of `size` bases.

    Raises:
        ConfigError: the window's bins would not be theirs.
    """
    if max_length % size or (max_length // size - known) % 2 or max_length // size < least:
        parity = "an odd" if known % 2 else "an even"
        near = max_length // size - (max_length // size - known) % 2
        near = max(near, least + (least - known) % 2)
        fix = f"bins are {size} bases wide, {known} in the middle; give {parity} number of them, such as {near * size}"
        raise wrong_value("data.max_length", max_length, fix)
    room = max_length // size
    held = min(known, room)
    return Bins(size, held, (known - held) // 2, (room - held) // 2 * size)


@dataclass(frozen=True)
class TrackSet(Dataset):
    """Item: {"tokens" [T], "target" float32 [n, K], NaN where nothing is known, "id", "start"}.

    Attributes:
        tokens, targets: called with a number below `size`.
        place: called with it, the record's name and where on it the window begins.
        chosen: the numbers that are used; None for all.
        endless: numbers go on past `size`, and are other windows in each epoch.
    """

    tokens: Callable[[int], np.ndarray]
    targets: Callable[[int], np.ndarray] | None
    place: Callable[[int], tuple[str, int]]
    size: int
    chosen: np.ndarray | None = None
    endless: bool = False

    def __len__(self) -> int:
        return self.size if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0 or (index >= len(self) and not self.endless):
            raise IndexError(index)
        number = index if self.chosen is None else int(self.chosen[index])
        name, start = self.place(number)
        item = {"tokens": self.tokens(number), "id": name, "start": start}
        if self.targets is not None:
            item["target"] = self.targets(number)
        return item

    def first(self, limit: int | None) -> TrackSet:
        """At most `limit`, evenly spaced over all of them; the same ones in every run and epoch."""
        if limit is None or len(self) <= limit:
            return self if limit is None else replace(self, endless=False)
        return replace(self, chosen=spread(np.arange(self.size), limit), endless=False)


class TracksDataModule(SequenceDataModule):
    """Base: a subclass names its folder and reads its splits by `_read`.

    Attributes: `bins` and `tracks` [K], the names of the tracks, are there after `setup`; `pooled` {name: tracks}: those whose
    numbers are correlated together, and `counts` [K], whether a track has log10(count + 1).
    """

    tasks: ClassVar[tuple[str, ...]] = ("track_regression",)
    lengths: ClassVar[str] = "if_short"
    folder: ClassVar[str]
    bins: Bins
    tracks: list[str]
    pooled: dict[str, list[int]] | None = None
    counts: list[bool] | None = None
    swap: list[int] | None = None  # [K], the track on the other strand

    def __init__(self, path: str | None, loading: Loading, **keys: Any):
        (loading,) = gathered(self, keys, loading)
        if loading.reverse_complement:
            fix = "targets are not turned; take task.average_strands=true or model.reverse_complement=shared"
            raise wrong_value("data.reverse_complement", True, fix)
        super().__init__("nucleotides", loading)
        self.path = settings.text_or_none("path", path)

    @abstractmethod
    def _read(self, folder: Path) -> Mapping[str, TrackSet]:
        """Every split, with `bins` and `tracks` set."""

    @property
    @abstractmethod
    def to_record(self) -> dict[str, Any]:
        """The settings that make the data what it is, for the record."""

    def _load(self) -> dict[str, Dataset]:
        if self.path is None:
            raise wrong_value("data.path", None, f"give the folder of DNALongBench's data, which holds {self.folder}/")
        folder = Path(self.path).expanduser() / self.folder
        if not folder.is_dir():
            raise wrong_value("data.path", self.path, f"{folder} is no folder; give the one that holds {self.folder}/")
        return dict(self._read(folder))

    def _load_predict(self) -> Dataset:
        return self.split("test")

    def _given_set(self, documents: list[Document]) -> TrackSet:
        other = next((d for d in documents if len(d.tokens) != self.max_length), None)
        if other is not None:
            fix = f"{other.name} has {len(other.tokens)} bases; bins lie in windows of {self.max_length}"
            raise wrong_value("sequences", other.name, fix)
        tokens = [document.tokens for document in documents]
        return TrackSet(tokens.__getitem__, None, lambda number: (documents[number].name, 0), len(tokens))

    @property
    def target_mean(self) -> list[float]:
        """[K], about the mean of the training split: over `MEAN_OF` of its sequences."""
        data = self.split("train")
        some = np.linspace(0, len(data) - 1, min(len(data), MEAN_OF)).round().astype(int)  # type: ignore[arg-type]
        total, count = 0.0, 0
        for index in some:  # one by one: a sequence may have millions of numbers
            target = data[int(index)]["target"]  # (n, K)
            known = ~np.isnan(target)
            total = total + np.where(known, target, 0.0).sum(0, dtype=np.float64)
            count = count + known.sum(0)
        return (total / np.maximum(count, 1)).tolist()

    def baselines(self, split: str = "test") -> dict[str, float]:
        """A track's mean everywhere is correlated with nothing."""
        return {"pearson": 0.0}

    def describe(self) -> dict[str, Any]:
        """Where the data is from, its tracks and bins, the sequences of each split, and what is left out."""
        record: dict[str, Any] = {"source": self.path, "benchmark": "dnalongbench", "paper": PAPER, **self.to_record}
        sizes = {split: {"sequences": len(self.split(split))} for split in SPLITS}  # type: ignore[arg-type]
        bins = {"tracks": len(self.tracks), "bins": self.bins.held, "bases a bin": self.bins.size}
        record |= {"max_length": self.max_length, **bins, **sizes}
        if self.dropped.counts:
            record["left_out"] = dict(self.dropped.counts)
        return json.loads(json.dumps(record))


def window(genome: EncodedGenome, record: MappedRecord, start: int, size: int) -> np.ndarray:
    """Bases of a record from `start`, [size] uint8; N before its beginning and past its end."""
    first, last = max(start, 0), min(start + size, len(record))
    own = genome.tokens[record.begin + first : record.begin + max(first, last)]
    if len(own) == size:
        return own
    tokens = np.full(size, UNKNOWN, dtype=np.uint8)
    tokens[first - start : first - start + len(own)] = own
    return tokens
