"""DNALongBench's regulatory sequence activity: thousands of assays along a sequence, in bins of 128 bases, as of Enformer.

Legend: B batch, T = `max_length`, N sequences of a split, n bins, K tracks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.cache import built
from longspan.data.corpus import spread
from longspan.data.dnalongbench.pairs import record_of, records_of
from longspan.data.dnalongbench.records import CODES, SUBSETS, bases_of, check_room, numbered, numbers_of, records_in
from longspan.data.dnalongbench.tracks import Bins, TracksDataModule, TrackSet, bins_in, window
from longspan.data.encoded_genomes import EncodedGenome, encoded, fingerprints
from longspan.data.errors import DataFileError, each
from longspan.data.files import read_utf8
from longspan.data.readers import Interval, read_bed
from longspan.data.values import Loading
from longspan.data.vocabularies import NUCLEOTIDES

GENOMES = {"human": "seqs/hg38.ml.fa", "mouse": "seqs/mm10.ml.fa"}
STATISTICS = ("num_targets", "seq_length", "target_length", "pool_width")
FORMAT = 1  # of the cache


class RegulatoryActivityDataModule(TracksDataModule):
    """{"tokens": [B, T], "labels": [B, n, K] float32}: how active a sequence is in K assays, in each of n bins of 128 bases.

    `path` holds `regulatory_sequence_activity_prediction/human/` (or `mouse/`) with `sequences.bed`, `statistics.json`,
    `targets/train-*.tfr`, `valid-*.tfr`, `test-*.tfr` and `seqs/hg38.ml.fa` (`mm10.ml.fa`). A sequence is `max_length` bases
    around the middle of an interval of the BED, N past its chromosome's ends; its 896 bins lie in the middle. A shorter
    `max_length` keeps the bins that it holds.

    Targets are unpacked once, into `LONGSPAN_CACHE`, 2 bytes a bin and track: 9.5 MB a human sequence with all 5,313 tracks.
    `tracks`, numbers from 0, and `max_train_windows` keep fewer. A record whose bases are not those of its interval is refused.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    folder: ClassVar[str] = "regulatory_sequence_activity_prediction"

    def __init__(self, *, path: str | None = None, organism: str = "human", tracks: Sequence[int] | None = None, **keys: Any):
        super().__init__(path, Loading(batch_size=1, max_length=196_608), **keys)
        self.organism = settings.choice("organism", organism, tuple(GENOMES))
        self.kept = None if tracks is None else [settings.whole("tracks", track, 0) for track in tracks]
        if self.kept is not None and (not self.kept or len(set(self.kept)) < len(self.kept)):
            raise wrong_value("data.tracks", self.kept, "give numbers of tracks from 0, each once, or null for all")

    def _read(self, folder: Path) -> Mapping[str, TrackSet]:
        folder = folder / self.organism
        if not folder.is_dir():
            raise wrong_value("data.path", self.path, f"{folder} is no folder; it holds the {self.organism} data")
        known = read_statistics(folder / "statistics.json")
        self.bins = bins_in(self.max_length, known["pool_width"], known["target_length"])
        if self.kept is not None and max(self.kept) >= known["num_targets"]:
            raise wrong_value("data.tracks", max(self.kept), f"the files have {known['num_targets']} tracks, numbered from 0")
        self.tracks = [str(track) for track in (range(known["num_targets"]) if self.kept is None else self.kept)]
        bed = folder / "sequences.bed"
        rows = read_bed(bed, strands=False, features=tuple(SUBSETS.values()))
        each(rows, _check_subset)
        if missing := [subset for subset in SUBSETS.values() if subset not in {row.kind for row in rows}]:
            raise DataFileError(bed, None, f"has no interval of subset {missing[0]!r}")
        files = {split: numbered(folder / "targets", subset) for split, subset in SUBSETS.items()}
        genome = encoded([(folder / GENOMES[self.organism], "fasta")], NUCLEOTIDES)
        sets = {}
        for split, subset in SUBSETS.items():
            own = [row for row in rows if row.kind == subset]
            chosen = spread(np.arange(len(own)), self.limits[split])
            unpack = Unpacking(files[split], own, chosen, genome, known, self.kept)
            targets = unpack.targets()
            read = Intervals(genome, [own[n] for n in chosen], targets, self.max_length, self.bins)
            sets[split] = TrackSet(read.tokens, read.targets_of, read.place, len(chosen))
        return sets

    @property
    def to_record(self) -> dict[str, Any]:
        return {"dataset": "regulatory_activity", "organism": self.organism}


@dataclass(frozen=True)
class Unpacking:
    """The targets of a split, unpacked from its files into the cache.

    Attributes:
        rows: the intervals of all records of `files`, in their order.
        chosen: the numbers of those that are kept.
        tracks: the numbers of the tracks that are kept; None for all.
    """

    files: list[Path]
    rows: list[Interval]
    chosen: np.ndarray
    genome: EncodedGenome
    known: Mapping[str, int]
    tracks: list[int] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(records, bins, tracks) that are kept."""
        return len(self.chosen), self.known["target_length"], len(self.tracks or range(self.known["num_targets"]))

    def targets(self) -> np.ndarray:
        """float16 of `shape`, mapped.

        Raises:
            DataFileError: a record is not what its interval and `statistics.json` say, or their numbers differ.
            ConfigError: the cache has no room.
        """
        places = [[row.chrom, row.start, row.end] for row in self.rows]
        source = {
            "format": FORMAT,
            "files": fingerprints(self.files),
            "intervals": places,
            "genome": self.genome.key,
            "sizes": dict(self.known),
            "tracks": self.tracks,
            "chosen": len(self.chosen),
        }
        return np.memmap(built("tracks", source, self._write) / "targets.bin", dtype=np.float16, mode="r", shape=self.shape)

    def _write(self, folder: Path) -> None:
        keys = "data.tracks or data.max_train_windows"
        check_room(f"the targets of {self.files[0].name.split('-')[0]}", 2 * int(np.prod(self.shape)), keys)
        wanted, count = set(self.chosen.tolist()), 0
        with (folder / "targets.bin").open("wb") as out:
            for file, record in records_in(self.files):
                if count < len(self.rows) and count in wanted:
                    out.write(self._checked(file, record, self.rows[count]).tobytes())
                count += 1
        if count != len(self.rows):
            reason = f"the files of its subset hold {count:,} records, where sequences.bed has {len(self.rows):,} intervals"
            raise DataFileError(self.files[-1], None, reason)

    def _checked(self, file: Path, record: Mapping[str, bytes], row: Interval) -> np.ndarray:
        size, bases = self.known["seq_length"], bases_of(file, record)
        if len(bases) != size:
            raise DataFileError(file, None, f"a sequence of {len(bases):,} bases where statistics.json says {size:,}")
        own = window(
            self.genome, record_of(records_of(self.genome), row.chrom, row.path, row.line), middle(row) - size // 2, size
        )
        both = np.isin(own, CODES) & np.isin(bases, CODES)
        if (bases != own)[both].any():
            place = f"{row.chrom}:{row.start}-{row.end} ({row.path}, line {row.line})"
            fix = "files and intervals must be in one order and of one assembly"
            raise DataFileError(file, None, f"the record of {place} has other bases than the genome there; {fix}")
        found, shape = numbers_of(file, record), (self.known["target_length"], self.known["num_targets"])
        if found.size != shape[0] * shape[1]:
            reason = f"a target of {found.size:,} numbers where statistics.json says {shape[0]} bins of {shape[1]} tracks"
            raise DataFileError(file, None, reason)
        found = found.reshape(shape)
        return found if self.tracks is None else found[:, self.tracks]


class Intervals:
    """Sequences around the middles of intervals, and the targets of the bins that they hold."""

    def __init__(self, genome: EncodedGenome, rows: list[Interval], targets: np.ndarray, length: int, bins: Bins) -> None:
        self.genome, self.targets, self.length, self.bins = genome, targets, length, bins
        records = records_of(genome)
        self.records = [record_of(records, row.chrom, row.path, row.line) for row in rows]
        self.starts = [middle(row) - length // 2 for row in rows]

    def tokens(self, number: int) -> np.ndarray:
        """[T] uint8."""
        return window(self.genome, self.records[number], self.starts[number], self.length)

    def targets_of(self, number: int) -> np.ndarray:
        """[n, K] float32."""
        first = self.bins.first
        return self.targets[number, first : first + self.bins.held].astype(np.float32)

    def place(self, number: int) -> tuple[str, int]:
        """The chromosome, and where on it the sequence begins."""
        return self.records[number].id, self.starts[number]


def middle(row: Interval) -> int:
    """The base in the middle of an interval."""
    return (row.start + row.end) // 2


def _check_subset(row: Interval) -> None:
    if row.kind not in SUBSETS.values():
        raise DataFileError(row.path, row.line, f"subset {row.kind!r} is unknown; take one of {', '.join(SUBSETS.values())}")


def read_statistics(path: Path) -> dict[str, int]:
    """The sizes in `statistics.json`.

    Raises:
        DataFileError: it is no JSON, or a size is missing or no whole number above 0.
    """
    try:
        found = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise DataFileError(path, error.lineno, f"is no JSON ({error.msg})") from error
    for key in STATISTICS:
        value = found.get(key) if isinstance(found, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DataFileError(path, None, f"{key!r} is {value!r}; it needs {', '.join(STATISTICS)}, whole numbers above 0")
    return {key: found[key] for key in STATISTICS}
