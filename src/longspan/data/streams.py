"""Rows of a `datasets.IterableDataset` as they come: shared out to streams, shuffled in blocks, with a place to go on from.

A stream is one worker of one rank. It has shards (files) of its own where there are enough of them, else every n-th row of
each. It reads a block of rows at a time, makes items of it (windows, sequences) and hands them out in an order that follows
from the seed and the block's place. So a place is where a block begins and how many of its items are handed out already.

Legend: S streams.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import fsspec.asyn
import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from longspan.config.errors import wrong_value
from longspan.data.errors import DataFileError
from longspan.data.files import list_files, read_blocks
from longspan.data.readers import Row
from longspan.data.readers.hub import classes_of_features, stream_hub
from longspan.data.readers.jsonl import jsonl_row
from longspan.data.splits import SPLITS

FORMATS = ("text", "lines", "jsonl", "parquet")
READ_AT_ONCE = 64  # rows
LOADERS = {"text": "text", "lines": "text", "jsonl": "json", "parquet": "parquet"}  # of the library


@dataclass(frozen=True)
class Rows:
    """The rows of a streamed data set.

    Attributes:
        data: a `datasets.IterableDataset`.
        names: of each shard, for messages: a file, or the data set's name.
        format: of files, one of `FORMATS`; None for a data set of the library.
    """

    data: Any
    names: tuple[str, ...]
    format: str | None = None

    def __len__(self) -> int:
        """Shards."""
        return len(self.names)

    def read(self, shard: int, start: int = 0) -> Iterator[Row]:
        """Its rows from the row `start` on; `line` is a row's number, from 1.

        Raises:
            DataFileError: the file is not what it claims to be.
        """
        name = self.names[shard]
        try:
            part = self.data.shard(num_shards=len(self), index=shard) if len(self) > 1 else self.data
            number, classes = start, classes_of_features(self.data.features) if self.format is None else None
            # in batches: single rows the library shares out to the workers of a loader itself, by rules of its own
            for columns in (part.skip(start) if start else part).iter(READ_AT_ONCE):
                for values in zip(*columns.values(), strict=True):
                    number += 1
                    yield Row(name, number, dict(zip(columns, values, strict=True)), classes=classes)
        except Exception as error:  # the library raises many kinds; each means that the rows are not to be had
            if isinstance(error, DataFileError):
                raise
            if self.format == "jsonl":
                _bad_line(Path(name))
            raise DataFileError(name, None, _reason(error)) from error


def _reason(error: Exception) -> str:
    """What an error of the library says, and what to do about it."""
    own, first = (getattr(error, f"{name}_column_names", None) for name in ("table", "requested"))
    if own and first:  # a datasets.table.CastError
        return f"its columns are {', '.join(own)}, those of the first file {', '.join(first)}; give all files the same columns"
    said = " ".join(str(error).split()) or type(error).__name__
    fix = "; convert it to UTF-8" if isinstance(error, UnicodeDecodeError) else ""
    return f"cannot be streamed ({said[:200]}){fix}"


def _bad_line(file: Path) -> None:
    """Looks for the line that is no JSON object; the library names none.

    Raises:
        DataFileError: there is one.
    """
    rest, number = b"", 0
    for block in [*read_blocks(file), b"\n"]:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                jsonl_row(file, number, line.decode("utf-8", errors="replace"))


def open_files(key: str, path: str, format: str | None) -> Rows:
    """The files that `data.<key>` names, all of one of `FORMATS`; `format` overrides what their suffixes say.

    Raises:
        ConfigError: nothing is there, or files of several formats, or of one that is not streamed.
        DataFileError: a file is empty.
    """
    import datasets

    files = list_files(key, path, format)
    kinds = sorted({kind for _, kind in files})
    if len(kinds) != 1 or kinds[0] not in FORMATS:
        fix = f"holds {', '.join(kinds)}; streamed files are all of one of {', '.join(FORMATS)}"
        raise wrong_value(f"data.{key}", path, fix)
    kind = kinds[0]
    for file, _ in files:
        next(read_blocks(file))  # refuses what is empty, or no whole archive from its beginning on
    names = tuple(str(file) for file, _ in files)
    how = {"text": {"sample_by": "document"}, "lines": {"sample_by": "line"}}.get(kind, {})
    try:
        patterns = [glob.escape(name) for name in names]  # the library takes names for globs
        data = datasets.load_dataset(LOADERS[kind], data_files=patterns, split="train", streaming=True, **how)
    except Exception as error:
        if kind == "jsonl":
            _bad_line(files[0][0])
        raise DataFileError(names[0], None, _reason(error)) from error
    return Rows(data, names, kind)


def open_hub(name: str, subset: str | None, split: str) -> Rows:
    """A split of the Hub.

    Raises:
        ConfigError: see `stream_hub`.
    """
    return of_dataset(stream_hub(name, subset, split), f"{name} ({split})")


def of_dataset(data: Any, name: str) -> Rows:
    """A `datasets.IterableDataset`, or a `datasets.Dataset`, that a program hands over.

    Raises:
        ConfigError: it is neither.
    """
    if hasattr(data, "to_iterable_dataset"):
        data = data.to_iterable_dataset()
    if not (hasattr(data, "num_shards") and hasattr(data, "skip")):
        raise wrong_value("data.dataset", type(data).__name__, "give a datasets.IterableDataset or datasets.Dataset")
    shards = max(1, int(data.num_shards))
    return Rows(data, tuple(f"{name}, shard {n}" for n in range(shards)) if shards > 1 else (name,))


@dataclass(frozen=True)
class HeldOut:
    """Which split a text is in, by its own hash: equal texts are in one split, however many there are and wherever they stand.

    Attributes: `validation` and `test`, shares of the texts; 0 where a split has rows of its own.
    """

    validation: float
    test: float

    def split(self, text: bytes) -> str:
        """One of `SPLITS`."""
        place = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
        return SPLITS[1] if place < self.validation else SPLITS[2] if place < self.validation + self.test else SPLITS[0]


@dataclass(frozen=True)
class Place:
    """Where a stream stands: the `place`-th of its shards in the order of its `turn` through the data, at `row` of it; of the
    items of the block that begins there, `item` are handed out."""

    turn: int = 0
    place: int = 0
    row: int = 0
    item: int = 0

    def numbers(self) -> list[int]:
        """Plain values, for checkpoints."""
        return [self.turn, self.place, self.row, self.item]


class Items(Protocol):
    """A data set by numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


class Streamed(IterableDataset):
    """Endless items of a stream, turn after turn. Item: what `make` gives, with "place": (stream, its `Place` afterwards).

    Args:
        rows: where they are from.
        keep: whether a row is trained on.
        make: the items of a block of rows.
        block: rows that are shuffled together.
        seed: of the order of shards and of items.
        rank, world: this process, and how many there are.
    """

    def __init__(
        self,
        rows: Rows,
        keep: Callable[[Row], bool],
        make: Callable[[list[Row]], Items],
        *,
        block: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rows, self.keep, self.make, self.block, self.seed = rows, keep, make, block, seed
        self.rank, self.world = rank, world
        self.places: dict[int, Place] = {}  # of each stream, where to go on
        self.turned = 0  # the stream of this rank's that hands out the next batch, where workers take turns

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        if info is not None:
            fsspec.asyn.reset_lock()  # a lock that another thread held when this process was forked is never let go
        workers = 1 if info is None else info.num_workers
        worker = 0 if info is None else (info.id + self.turned) % workers
        stream = self.rank * workers + worker
        for place, item in self.items(stream, self.world * workers, self.places.get(stream, Place())):
            yield {**item, "place": (stream, place)}

    def items(self, stream: int, streams: int, place: Place) -> Iterator[tuple[Place, dict]]:
        """The items of a stream from a place on, each with the place after it.

        Raises:
            ConfigError: a turn through the data gives the stream nothing.
        """
        turn, found = place.turn, place != Place(place.turn)
        for begin, rows in self._blocks(stream, streams, replace(place, item=0)):
            if begin.turn != turn:
                if not found:
                    fix = (
                        f"stream {stream} of {streams} finds nothing to train on; give more data, or fewer workers and devices"
                    )
                    raise wrong_value("data.num_workers", streams, fix)
                turn, found = begin.turn, False
            if not rows:
                continue
            items = self.make(rows)
            found = found or len(items) > 0
            skip = place.item if begin == replace(place, item=0) else 0
            key = [self.seed, 0x57E, stream, begin.turn, begin.place, begin.row]
            order = np.random.default_rng(key).permutation(len(items))
            for count, number in enumerate(order[skip:].tolist(), start=skip + 1):
                yield replace(begin, item=count), items[number]

    def _blocks(self, stream: int, streams: int, place: Place) -> Iterator[tuple[Place, list[Row]]]:
        """Blocks of kept rows with the places where they begin; the last of a turn may be small, or empty."""
        apart = len(self.rows) >= streams  # each stream has shards of its own
        own = np.random.default_rng([self.seed, 0x5A]).permutation(len(self.rows))
        own = own[stream::streams] if apart else own
        while True:
            order = np.random.default_rng([self.seed, 0x5B, place.turn, stream]).permutation(own).tolist()
            begin, rows = place, []
            for at in range(place.place, len(order)):
                start = place.row if at == place.place else 0
                for number, row in enumerate(self.rows.read(order[at], start), start=start):
                    if (apart or number % streams == stream) and self.keep(row):
                        rows.append(row)
                        if len(rows) == self.block:
                            yield begin, rows
                            begin, rows = Place(place.turn, at, number + 1), []
            yield begin, rows
            place = Place(place.turn + 1)


class InOrder(IterableDataset):
    """All items of all rows once, in order, for predictions; where there are workers, the first of them reads."""

    def __init__(self, rows: Callable[[], Iterable[Row]], make: Callable[[list[Row]], Items]):
        self.rows, self.make = rows, make

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        if info is None or info.id == 0:
            for row in self.rows():
                items = self.make([row])
                yield from (items[number] for number in range(len(items)))
