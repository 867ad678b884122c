"""DNALongBench's transcription initiation signal: ten tracks of where transcription begins, base by base, as of Puffin-D.

Legend: B batch, T = `max_length`, K = 10 tracks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.dnalongbench.pairs import read_spans, records_of
from longspan.data.dnalongbench.records import UNKNOWN
from longspan.data.dnalongbench.tracks import Bins, TracksDataModule, TrackSet, window
from longspan.data.encoded_genomes import EncodedGenome, MappedRecord, encoded
from longspan.data.errors import DataFileError
from longspan.data.readers import BigWig
from longspan.data.values import Loading
from longspan.data.vocabularies import NUCLEOTIDES

GENOME = "seqs/Homo_sapiens.GRCh38.dna.primary_assembly.fa"
# the order of a target's columns: of an assay the track on + and the one on - stand as far from either end
TRACKS = {
    "cage_plus": "agg.plus.bw.bedgraph.bw",
    "encodecage_plus": "agg.encodecage.plus.v2.bedgraph.bw",
    "encoderampage_plus": "agg.encoderampage.plus.v2.bedgraph.bw",
    "grocap_plus": "agg.plus.grocap.bedgraph.sorted.merged.bw",
    "procap_plus": "agg.plus.allprocap.bedgraph.sorted.merged.bw",
    "procap_minus": "agg.minus.allprocap.bedgraph.sorted.merged.bw",
    "grocap_minus": "agg.minus.grocap.bedgraph.sorted.merged.bw",
    "encoderampage_minus": "agg.encoderampage.minus.v2.bedgraph.bw",
    "encodecage_minus": "agg.encodecage.minus.v2.bedgraph.bw",
    "cage_minus": "agg.minus.bw.bedgraph.bw",
}
ASSAYS = ("cage", "encodecage", "encoderampage", "grocap", "procap")
COUNTS = ("cage", "encodecage", "encoderampage")  # assays whose tracks hold log10(count + 1)
# where FANTOM's CAGE is not to be trusted, ENCODE's takes its place: blacklist, track, track in its place, times
REPLACED = (
    ("blacklists/fantom.blacklist8.plus.bed.gz", "cage_plus", "encodecage_plus", 0.61357),
    ("blacklists/fantom.blacklist8.minus.bed.gz", "cage_minus", "encodecage_minus", 0.61357),
)
HELD_OUT = {"validation": ("chr10",), "test": ("chr8", "chr9")}
MOST_UNKNOWN = 0.3  # share of N in a training window
NEAR_UNKNOWN = 500  # bases from an N within which nothing is scored
DRAWS = 1000  # for one training window


class TranscriptionInitiationDataModule(TracksDataModule):
    """{"tokens": [B, T], "labels": [B, T, 10] float32}: of each base how often transcription begins there, by five assays.

    `path` holds `transcription_initiation_signal_prediction/` with `seqs/` (a FASTA), `targets/` (ten bigWig files) and
    `targets/blacklists/` (two BED files). Training draws `epoch_windows` windows an epoch, anywhere on chromosomes other than
    8, 9 (the test) and 10 (validation), anew each epoch, none with over 30% of N. Windows of evaluation begin T / 2 apart, and
    the middle half of each is scored, but for bases within 500 of an N.

    Raises:
        ConfigError: an argument cannot be used, or pyBigWig is not installed; the message names the fix.
    """

    folder: ClassVar[str] = "transcription_initiation_signal_prediction"

    def __init__(self, *, path: str | None = None, epoch_windows: int = 100_000, **keys: Any):
        super().__init__(path, Loading(batch_size=1, max_length=100_000), **keys)
        self.epoch_windows = settings.whole("epoch_windows", epoch_windows, 1)
        if self.max_length % 4:
            fix = f"the middle half of a window is scored; give a multiple of 4, such as {self.max_length // 4 * 4 or 4}"
            raise wrong_value("data.max_length", self.max_length, fix)
        self.bins, self.tracks = Bins(1, self.max_length, 0, 0), list(TRACKS)
        self.pooled = {assay: [self.tracks.index(f"{assay}_{strand}") for strand in ("plus", "minus")] for assay in ASSAYS}
        self.counts = [name.rsplit("_", 1)[0] in COUNTS for name in self.tracks]
        self.swap = list(reversed(range(len(self.tracks))))

    def _read(self, folder: Path) -> Mapping[str, TrackSet]:
        wigs = [BigWig(folder / "targets" / file) for file in TRACKS.values()]  # first: it is known at once if one is missing
        genome = encoded([(folder / GENOME, "fasta")], NUCLEOTIDES)
        records = self._measured(genome, wigs, folder / GENOME)
        spans = [read_spans(folder / "targets" / replaced[0], records_of(genome)) for replaced in REPLACED]
        signal = Signal(genome, wigs, spans)
        held = {name for names in HELD_OUT.values() for name in names}
        if missing := [name for name in sorted(held) if name not in records]:
            has = ", ".join(list(records)[:5]) + (", ..." if len(records) > 5 else "")
            raise DataFileError(folder / GENOME, None, f"no {missing[0]!r} with at least {self.max_length} bases; it has {has}")
        sets = {split: self._held_out(signal, [records[name] for name in names]) for split, names in HELD_OUT.items()}
        training = [record for name, record in records.items() if name not in held]
        if not training:
            raise DataFileError(folder / GENOME, None, f"has no chromosome for training beside {', '.join(sorted(held))}")
        drawn = DrawnWindows(signal, training, self.max_length, self.seed)
        sets["train"] = TrackSet(drawn.tokens, drawn.targets, drawn.place, self.epoch_windows, endless=True)
        return {split: data.first(self.limits[split]) for split, data in sets.items()}

    def _measured(self, genome: EncodedGenome, wigs: list[BigWig], path: Path) -> dict[str, MappedRecord]:
        """The records that have every track and hold a window; others are left out and counted.

        Raises:
            DataFileError: a track is of another assembly.
        """
        kept, short, bare = {}, 0, 0
        for record in genome.records:
            sizes = [wig.sizes.get(record.id) for wig in wigs]
            other = next((n for n, size in enumerate(sizes) if size not in (None, len(record))), None)
            if other is not None:
                reason = f"{record.id!r} has {sizes[other]:,} bases there, and {len(record):,} in {path}: another assembly"
                raise DataFileError(wigs[other].path, None, reason)
            if None in sizes:
                bare += 1
            elif len(record) < self.max_length:
                short += 1
            else:
                kept[record.id] = record
        self.dropped.add("sequences that a track does not have", bare, str(path))
        self.dropped.add(f"sequences shorter than {self.max_length} bases", short, str(path))
        return kept

    def _held_out(self, signal: Signal, records: list[MappedRecord]) -> TrackSet:
        tiled = TiledWindows(signal, records, self.max_length)
        return TrackSet(tiled.tokens, tiled.targets, tiled.place, len(tiled.windows))

    @property
    def to_record(self) -> dict[str, Any]:
        return {"dataset": "transcription_initiation"}


@dataclass(frozen=True)
class Signal:
    """The ten tracks of a genome, with what takes the place of untrusted stretches; `spans`: those, {record: [N, 2]}."""

    genome: EncodedGenome
    wigs: list[BigWig]
    spans: Sequence[Mapping[str, np.ndarray]]

    def __call__(self, record: MappedRecord, start: int, size: int) -> np.ndarray:
        """[size, 10] float32."""
        values = np.stack([wig.values(record.id, start, start + size) for wig in self.wigs], axis=1)
        names = list(TRACKS)
        for (_, name, other, times), known in zip(REPLACED, self.spans, strict=True):
            for begin, end in known.get(record.id, np.zeros((0, 2), dtype=np.int64)).tolist():
                if begin < start + size and end > start:
                    part = slice(max(begin - start, 0), end - start)
                    values[part, names.index(name)] = values[part, names.index(other)] * times
        return values


class TiledWindows:
    """Windows T / 2 apart, the last at each record's end, of which the middle half is scored."""

    def __init__(self, signal: Signal, records: list[MappedRecord], length: int) -> None:
        self.signal, self.length = signal, length
        step = length // 2
        self.windows = [
            (record, start)
            for record in records
            for start in sorted({*range(0, len(record) - length + 1, step), len(record) - length})
        ]

    def place(self, number: int) -> tuple[str, int]:
        """The record's name, and where on it the window begins."""
        record, start = self.windows[number]
        return record.id, start

    def tokens(self, number: int) -> np.ndarray:
        """[T] uint8."""
        record, start = self.windows[number]
        return window(self.signal.genome, record, start, self.length)

    def targets(self, number: int) -> np.ndarray:
        """[T, 10] float32, NaN outside the middle half, and near an N."""
        record, start = self.windows[number]
        values = self.signal(record, start, self.length)
        quarter = self.length // 4
        begin, end = quarter, self.length - quarter
        if number + 1 == len(self.windows) or self.windows[number + 1][0] is not record:
            other, before = self.windows[number - 1]
            if number and other is record:  # the last window overlaps the one before by more
                begin = max(begin, before + self.length - quarter - start)
        around = window(self.signal.genome, record, start - NEAR_UNKNOWN, self.length + 2 * NEAR_UNKNOWN)
        inside = np.arange(start - NEAR_UNKNOWN, start + self.length + NEAR_UNKNOWN)
        unknown = np.concatenate([[0], np.cumsum((around == UNKNOWN) & (inside >= 0) & (inside < len(record)))])
        near = unknown[2 * NEAR_UNKNOWN + 1 :] - unknown[: self.length] > 0
        values[near] = np.nan
        values[:begin] = values[end:] = np.nan
        return values


class DrawnWindows:
    """Windows that are drawn anywhere on the records, each a function of (seed, number) alone."""

    def __init__(self, signal: Signal, records: list[MappedRecord], length: int, seed: int) -> None:
        self.signal, self.records, self.length, self.seed = signal, records, length, seed
        self.ends = np.cumsum([len(record) - length + 1 for record in records])

    def _drawn(self, number: int) -> tuple[MappedRecord, int]:
        rng = np.random.default_rng([self.seed, 0x7155, number])
        for _ in range(DRAWS):
            at = int(rng.integers(self.ends[-1]))
            index = int(np.searchsorted(self.ends, at, side="right"))
            record, start = self.records[index], at - (int(self.ends[index - 1]) if index else 0)
            if (window(self.signal.genome, record, start, self.length) == UNKNOWN).mean() <= MOST_UNKNOWN:
                return record, start
        reason = f"{DRAWS} windows of {self.length} bases, drawn anywhere on {len(self.records)} sequences, are all over 30% N"
        raise DataFileError(self.records[0].path, None, reason)

    def place(self, number: int) -> tuple[str, int]:
        """The record's name, and where on it the window begins."""
        record, start = self._drawn(number)
        return record.id, start

    def tokens(self, number: int) -> np.ndarray:
        """[T] uint8."""
        return window(self.signal.genome, *self._drawn(number), self.length)

    def targets(self, number: int) -> np.ndarray:
        """[T, 10] float32."""
        return self.signal(*self._drawn(number), self.length)
