"""DNALongBench's contact maps: which parts of a million bases lie close together in a cell's nucleus, as of Akita.

Legend: B batch, T = `max_length`, N sequences of a split, m bins, n pairs of bins at least two apart, K cell lines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.cache import built
from longspan.data.dnalongbench.records import SUBSETS, bases_of, numbered, numbers_of, records_in
from longspan.data.dnalongbench.tracks import TracksDataModule, TrackSet, bins_in
from longspan.data.encoded_genomes import fingerprints
from longspan.data.errors import DataFileError
from longspan.data.values import Loading

CELLS = ("HFF", "H1hESC", "GM12878", "IMR90", "HCT116")  # in the order of a target's columns
BIN = 2048  # bases
APART = 2  # bins nearer than that have no number
ALL = "all"
FORMAT = 1  # of the cache


class ContactMapDataModule(TracksDataModule):
    """{"tokens": [B, T], "labels": [B, n, K] float32}: how much oftener than expected two bins of 2,048 bases meet.

    `path` holds `contact_map_prediction/targets/` with `train-*.tfr`, `valid-*.tfr` and `test-*.tfr`. The 448 bins with numbers
    lie in the middle of 1,048,576 bases; the n = 99,681 pairs of bins two or more apart are in the order of
    `torch.triu_indices(m, m, 2)`. A shorter `max_length` keeps the bins, and their pairs, that it holds. `cell`: a cell line,
    or "all" five, each a track.

    Records are unpacked once, into `LONGSPAN_CACHE`: 2 MB a sequence.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("contact_regression",)
    folder: ClassVar[str] = "contact_map_prediction"

    def __init__(self, *, path: str | None = None, cell: str = CELLS[0], **keys: Any):
        super().__init__(path, Loading(batch_size=1, max_length=1_048_576), **keys)
        self.cell = settings.choice("cell", cell, (*CELLS, ALL))
        self.tracks = list(CELLS) if self.cell == ALL else [self.cell]

    def _read(self, folder: Path) -> Mapping[str, TrackSet]:
        files = {split: numbered(folder / "targets", subset) for split, subset in SUBSETS.items()}
        unpacked = {split: Maps.unpacked(own) for split, own in files.items()}
        sizes = {split: (maps.tokens_kept.shape[1], maps.known) for split, maps in unpacked.items()}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{split} {bases:,} bases and {bins} bins" for split, (bases, bins) in sizes.items())
            raise DataFileError(folder / "targets", None, f"splits differ in size: {said}")
        sets = {}
        for split, maps in unpacked.items():
            bases = maps.tokens_kept.shape[1]
            if self.max_length > bases:
                raise wrong_value(
                    "data.max_length", self.max_length, f"the files have sequences of {bases} bases; give no more"
                )
            self.bins = bins_in(self.max_length, BIN, maps.known, APART + 1)
            read = maps.of(self.max_length, self.bins.held, [CELLS.index(cell) for cell in self.tracks])
            sets[split] = TrackSet(read.tokens, read.targets, read.place, len(maps.tokens_kept)).first(self.limits[split])
        return sets

    @property
    def to_record(self) -> dict[str, Any]:
        return {"dataset": "contact_maps", "cell": self.cell}


class Maps:
    """Sequences [N, bases] and targets [N, pairs, 5] of a split, mapped; `known` bins have numbers."""

    def __init__(self, name: str, tokens: np.ndarray, targets: np.ndarray) -> None:
        self.name, self.tokens_kept, self.targets_kept = name, tokens, targets
        self.known = bins_of(targets.shape[1])

    @classmethod
    def unpacked(cls, files: list[Path]) -> Maps:
        """Those of a split's files, unpacked now or earlier.

        Raises:
            DataFileError: a record is none of five cell lines' maps, or of another size than the first.
            ConfigError: the cache has no room.
        """
        folder = built("contacts", {"format": FORMAT, "files": fingerprints(files)}, lambda part: _write(part, files))
        count, bases, pairs = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
        tokens = np.memmap(folder / "tokens.bin", dtype=np.uint8, mode="r", shape=(count, bases))
        targets = np.memmap(folder / "targets.bin", dtype=np.float16, mode="r", shape=(count, pairs, len(CELLS)))
        return cls(files[0].name.split("-")[0], tokens, targets)

    def of(self, length: int, bins: int, cells: list[int]) -> CentralMaps:
        """The middle `length` bases, and of its `bins` bins the pairs, in these cell lines."""
        return CentralMaps(self, length, bins, cells)


class CentralMaps:
    """The middle of each sequence and of its map."""

    def __init__(self, maps: Maps, length: int, bins: int, cells: list[int]) -> None:
        self.maps, self.length, self.cells = maps, length, cells
        self.begin = (maps.tokens_kept.shape[1] - length) // 2
        first = (maps.known - bins) // 2
        place = np.zeros((maps.known, maps.known), dtype=np.int64)
        place[np.triu_indices(maps.known, APART)] = np.arange(maps.targets_kept.shape[1])
        middle = place[first : first + bins, first : first + bins]
        self.pairs = middle[np.triu_indices(bins, APART)]

    def tokens(self, number: int) -> np.ndarray:
        """[T] uint8."""
        return self.maps.tokens_kept[number, self.begin : self.begin + self.length]

    def targets(self, number: int) -> np.ndarray:
        """[n, K] float32."""
        return self.maps.targets_kept[number][self.pairs][:, self.cells].astype(np.float32)

    def place(self, number: int) -> tuple[str, int]:
        """The files do not say where a sequence is from: its split and number, and where of it the window begins."""
        return f"{self.maps.name}-{number}", self.begin


def bins_of(pairs: int) -> int:
    """The number of bins of which `pairs` pairs are two or more apart, (m - 1) (m - 2) / 2; 0 where there is none."""
    bins = (3 + math.isqrt(1 + 8 * pairs)) // 2
    return bins if pairs and (bins - 1) * (bins - 2) // 2 == pairs else 0


def _write(folder: Path, files: list[Path]) -> None:
    sizes: tuple[int, int] | None = None
    count = 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "targets.bin").open("wb") as targets:
        for file, record in records_in(files):
            bases, found = bases_of(file, record), numbers_of(file, record)
            pairs = found.size // len(CELLS)
            if found.size % len(CELLS) or not bins_of(pairs) or len(bases) < bins_of(pairs) * BIN:
                reason = f"a target of {found.size:,} numbers for {len(bases):,} bases is no map of {len(CELLS)} cell lines"
                raise DataFileError(file, None, reason)
            if sizes not in (None, (len(bases), pairs)):
                assert sizes is not None
                reason = f"a record of {len(bases):,} bases and {pairs:,} pairs after some of {sizes[0]:,} and {sizes[1]:,}"
                raise DataFileError(file, None, reason)
            sizes = len(bases), pairs
            tokens.write(bases.tobytes())
            targets.write(found.tobytes())
            count += 1
    assert sizes is not None  # a file without a record is refused
    (folder / "sizes.json").write_text(json.dumps([count, *sizes]) + "\n", encoding="utf-8")
