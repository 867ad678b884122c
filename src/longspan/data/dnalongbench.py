"""DNALongBench's enhancer-target gene task (arXiv:2501.01945): whether a region of DNA acts on a gene far away.

Legend: B batch, T = `max_length`, N pairs of a gene and a region, M masked stretches.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.encoded_genomes import EncodedGenome, MappedRecord, encoded
from longspan.data.errors import DataFileError, each
from longspan.data.files import read_utf8
from longspan.data.labelled import LabelledDataModule, LabelledSet
from longspan.data.readers import Row, read_bed, read_csv
from longspan.data.values import Loading, gathered
from longspan.data.vocabularies import NUCLEOTIDES

PAPER = "2501.01945"
CONFIGS = {"enhancer_target_gene": "config/CRISPRi_EPI_K562_hg19.config"}  # {data set: its config, in its folder}
SUBSETS = {"train": "train", "valid": "validation", "test": "test"}
TARGETS = ("negative", "positive")  # in the order of their class numbers
SPANS = ("gene", "region")
COLUMNS = (
    *(f"{what}_{part}" for what in SPANS for part in ("chrom", "start", "end")),
    *("gene_id", "gene_strand", "region_id", "target", "subset"),
)
FILES = ("genome_fa", "EPI_file", "enhancer_tabix_file")
SIZES = ("seq_len_cutoff", "tss_flank_upstream", "tss_flank_downstream", "region_flank_upstream", "region_flank_downstream")
UNKNOWN = NUCLEOTIDES.encode_bytes(b"N")[0]


class Setting(NamedTuple):
    """A value of a config file, and its line there."""

    value: Any
    line: int


def read_config(path: str | Path) -> dict[str, Setting]:
    """The settings of a file of `key value type` lines; a type is int, float, bool, str or list (separated by commas).

    Raises:
        DataFileError: with the line: not three words, an unknown type, a value that is not of its type, a key given twice.
    """
    found: dict[str, Setting] = {}
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3:
            raise DataFileError(path, number, f"{len(words)} words where a line is 'key value type'")
        key, value, kind = words
        if key in found:
            raise DataFileError(path, number, f"key {key!r} is on line {found[key].line} already")
        if kind not in TYPES:
            raise DataFileError(path, number, f"type {kind!r} of {key!r} is unknown; take one of {', '.join(TYPES)}")
        try:
            found[key] = Setting(TYPES[kind](value), number)
        except ValueError:
            raise DataFileError(path, number, f"value {value!r} of {key!r} is no {kind}") from None
    return found


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError(value)
    return value.lower() in ("true", "1")


TYPES: Mapping[str, Any] = {"int": int, "float": float, "bool": _flag, "str": str, "list": lambda value: value.split(",")}


@dataclass(frozen=True)
class Layout:
    """What a config file says: `files` by key, and `sizes` in bases by key."""

    files: Mapping[str, Path]
    sizes: Mapping[str, int]

    @classmethod
    def read(cls, config: Path, folder: Path) -> Layout:
        """The layout of a data set in `folder`.

        Raises:
            DataFileError: the config is malformed, a key is missing or of another type, or a file that it names is not there.
        """
        found = read_config(config)
        for key in (*FILES, *SIZES):
            if key not in found:
                raise DataFileError(config, None, f"key {key!r} is missing; it needs {', '.join((*FILES, *SIZES))}")
        for key in FILES:
            value, line = found[key]
            if not isinstance(value, str):
                raise DataFileError(config, line, f"{key!r} is {value!r}; give a file, of type str")
            if not (folder / value).is_file():
                raise DataFileError(config, line, f"{key!r} names {value!r}, but {folder / value} is no file")
        for key in SIZES:
            value, line = found[key]
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise DataFileError(config, line, f"{key!r} is {value!r}; give a number of bases, 0 or more, of type int")
        return cls({key: folder / found[key].value for key in FILES}, {key: found[key].value for key in SIZES})

    def flanked(self, what: str, start: int, end: int) -> tuple[int, int]:
        """A stretch with the flanks of a "tss" or "region"."""
        return start - self.sizes[f"{what}_flank_upstream"], end + self.sizes[f"{what}_flank_downstream"]


class Pair(NamedTuple):
    """Bases `begin` to `end` of a record (below 0 or past its end they are N), of which `masks` become N, [M, 2]."""

    name: str
    split: str
    target: int
    record: MappedRecord
    begin: int
    end: int
    masks: np.ndarray
    reverse: bool


class LeftOut(NamedTuple):
    """Why a row is no pair, and where it stands."""

    reason: str
    row: Row


class PairReader:
    """Makes a `Pair` of a row, or says why it is left out.

    Args:
        layout: flanks and cutoff.
        records: of the genome, by name.
        enhancers: {record: [N, 2] starts and ends}.
    """

    def __init__(self, layout: Layout, records: Mapping[str, MappedRecord], enhancers: Mapping[str, np.ndarray]):
        self.layout, self.records, self.enhancers = layout, records, enhancers

    def __call__(self, row: Row) -> Pair | LeftOut:
        """Raises DataFileError where a value of the row cannot be what it is named."""
        (record, *gene), (other, *region) = (self._span(row, what) for what in SPANS)
        target, subset, strand = (str(row.values[column]) for column in ("target", "subset", "gene_strand"))
        for column, value, options in (("target", target, TARGETS), ("subset", subset, tuple(SUBSETS))):
            if value not in options:
                raise DataFileError(row.path, row.line, f"{column} {value!r} is unknown; take one of {', '.join(options)}")
        if record != other:
            return LeftOut("pairs on two chromosomes", row)
        if strand not in ("+", "-"):
            return LeftOut("pairs with a gene on no strand", row)
        site = gene[0] if strand == "+" else gene[1] - 1
        tss, around = self.layout.flanked("tss", site, site + 1), self.layout.flanked("region", *region)
        between = min(tss[1], around[1]), max(tss[0], around[0])
        cutoff = self.layout.sizes["seq_len_cutoff"]
        if between[1] - between[0] > cutoff:
            return LeftOut(f"pairs more than {cutoff} bases apart", row)
        return Pair(
            name=f"{row.values['gene_id']}/{row.values['region_id']}",
            split=SUBSETS[subset],
            target=TARGETS.index(target),
            record=record,
            begin=min(tss[0], around[0]),
            end=max(tss[1], around[1]),
            masks=self._masks(record.id, between, region),
            # as published: a gene that holds the region is not downstream of it, whatever its strand
            reverse=gene[0] > around[1],
        )

    def _span(self, row: Row, what: str) -> tuple[MappedRecord, int, int]:
        chrom, *ends = (str(row.values[f"{what}_{part}"]) for part in ("chrom", "start", "end"))
        for part, value in zip(("start", "end"), ends, strict=True):
            if not (value.isascii() and value.isdigit()):
                raise DataFileError(row.path, row.line, f"{what}_{part} {value!r} is not a whole number from 0")
        start, end = map(int, ends)
        if start >= end:
            reason = f"{what}_start {start} is not before {what}_end {end} (0-based, half-open)"
            raise DataFileError(row.path, row.line, reason)
        record = record_of(self.records, chrom, row.path, row.line)
        if end > len(record):
            raise DataFileError(row.path, row.line, f"{what}_end {end} is past the end of {chrom!r}, {len(record)} bases")
        return record, start, end

    def _masks(self, chrom: str, between: tuple[int, int], region: Sequence[int]) -> np.ndarray:
        """The enhancers, whole, that reach into `between`, but for those of the region that is asked about, [M, 2]."""
        known = self.enhancers.get(chrom)
        if known is None or between[0] >= between[1]:
            return np.zeros((0, 2), dtype=np.int64)
        (low, high), (start, end) = between, region
        reaches = (known[:, 0] < high) & (known[:, 1] > low)
        asked = (known[:, 0] < end) & (known[:, 1] > start)
        return known[reaches & ~asked]


def record_of(records: Mapping[str, MappedRecord], chrom: str, path: str, line: int) -> MappedRecord:
    """The genome's record of this name.

    Raises:
        DataFileError: there is none; with the file and line that name it.
    """
    if chrom not in records:
        has = ", ".join(list(records)[:5]) + (", ..." if len(records) > 5 else "")
        raise DataFileError(path, line, f"chromosome {chrom!r} is not in the FASTA of genome_fa, which has {has}")
    return records[chrom]


def read_enhancers(path: Path, records: Mapping[str, MappedRecord]) -> dict[str, np.ndarray]:
    """Starts and ends of a BED's intervals by chromosome, {name: [N, 2] int64}.

    Raises:
        DataFileError: it is no BED, or an interval is on a chromosome that is not there or ends past its end.
    """
    found = defaultdict(list)
    for interval in read_bed(path, strands=False):
        size = len(record_of(records, interval.chrom, interval.path, interval.line))
        if interval.end > size:
            reason = f"end {interval.end} is past the end of {interval.chrom!r}, {size} bases"
            raise DataFileError(interval.path, interval.line, reason)
        found[interval.chrom].append((interval.start, interval.end))
    return {chrom: np.array(spans, dtype=np.int64) for chrom, spans in found.items()}


class PairSequences:
    """The tokens of a pair by its number, cut out of the mapped genome when they are asked for, at most `longest`."""

    def __init__(self, genome: EncodedGenome, pairs: Sequence[Pair], longest: int):
        self.genome, self.pairs, self.longest = genome, pairs, longest

    def __call__(self, number: int) -> np.ndarray:
        """[bases] uint8."""
        pair = self.pairs[number]
        tokens = np.full(pair.end - pair.begin, UNKNOWN, dtype=np.uint8)
        first, last = max(pair.begin, 0), min(pair.end, len(pair.record))
        own = self.genome.tokens[pair.record.begin + first : pair.record.begin + last]
        tokens[first - pair.begin : last - pair.begin] = own
        for start, end in pair.masks.tolist():
            tokens[max(start - pair.begin, 0) : end - pair.begin] = UNKNOWN
        if pair.reverse:
            assert NUCLEOTIDES.complement is not None
            tokens = NUCLEOTIDES.complement[tokens[::-1]].astype(np.uint8)
        return tokens[: self.longest]


class DNALongBenchDataModule(LabelledDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B]}: a gene's start, a region, all between them; does one act on the other?

    `path` holds `enhancer_target_gene/config/CRISPRi_EPI_K562_hg19.config`, which names a genome, a table of pairs and a BED
    of enhancers. A sequence runs from the gene's start (TSS) with its flanks to the region with its own, as in the paper:
    other enhancers between the two are N, as is what lies beyond the chromosome, and a gene that begins downstream of the
    region's flank is read from the other strand, so that it comes first. Sequences longer than `max_length` or than the
    config's `seq_len_cutoff` keep their head. Pairs on two chromosomes, of a gene on no strand, or further apart than
    `seq_len_cutoff` are left out, counted and printed. Splits are the table's.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    def __init__(self, *, path: str | None = None, dataset: str = "enhancer_target_gene", **keys: Any):
        (loading,) = gathered(self, keys, Loading(batch_size=1, max_length=450_000))
        super().__init__("nucleotides", loading)
        self.path = settings.text_or_none("path", path)
        self.dataset = settings.choice("dataset", dataset, tuple(CONFIGS))
        self._classes(list(TARGETS))
        self._found: dict[str, LabelledSet] = {}

    def _labelled(self) -> dict[str, LabelledSet]:
        if not self._found:  # read once, so that what is left out is counted once
            self._found = self._read()
        return self._found

    def _read(self) -> dict[str, LabelledSet]:
        if self.path is None:
            raise wrong_value("data.path", None, f"give the folder of DNALongBench's data, which holds {self.dataset}/")
        folder = Path(self.path).expanduser() / self.dataset
        config = folder / CONFIGS[self.dataset]
        if not config.is_file():
            raise wrong_value("data.path", self.path, f"{config} is no file; give the folder that holds {self.dataset}/")
        layout = Layout.read(config, folder)
        rows = read_csv(layout.files["EPI_file"], "\t")
        if missing := [column for column in COLUMNS if column not in rows[0].values]:
            raise DataFileError(rows[0].path, 1, f"no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
        genome = encoded([(layout.files["genome_fa"], "fasta")], NUCLEOTIDES)
        records = {record.id: record for record in genome.records}
        read = PairReader(layout, records, read_enhancers(layout.files["enhancer_tabix_file"], records))
        pairs: dict[str, list[Pair]] = {split: [] for split in SUBSETS.values()}
        left: dict[str, list[Row]] = defaultdict(list)
        for found in each(rows, read):
            if isinstance(found, Pair):
                pairs[found.split].append(found)
            else:
                left[found.reason].append(found.row)
        for reason, those in left.items():
            self.dropped.add(reason, len(those), f"{those[0].path}, line {those[0].line}")
        for subset, split in SUBSETS.items():
            if not pairs[split]:
                raise DataFileError(layout.files["EPI_file"], None, f"no pair of subset {subset!r} is there or fits")
        longest = min(self.max_length, layout.sizes["seq_len_cutoff"])
        return {split: _set_of(genome, own, longest) for split, own in pairs.items()}

    def _given_set(self, documents: list[Any]) -> LabelledSet:
        tokens = [document.tokens[: self.max_length] for document in documents]
        return LabelledSet(tokens.__getitem__, None, len(tokens), [document.name for document in documents])

    def _load_predict(self) -> LabelledSet:
        return self._labelled()["test"]

    @property
    def to_record(self) -> dict[str, Any]:
        return {"source": self.path, "benchmark": "dnalongbench", "dataset": self.dataset, "paper": PAPER}

    def describe(self) -> dict[str, Any]:
        """Where the data is from, of each split the pairs of each class, and how many pairs are left out and why."""
        record = super().describe()
        return {**record, "left_out": json.loads(json.dumps(self.dropped.counts))} if self.dropped.counts else record


def _set_of(genome: EncodedGenome, pairs: Sequence[Pair], longest: int) -> LabelledSet:
    targets = np.array([pair.target for pair in pairs], dtype=np.int64)
    return LabelledSet(PairSequences(genome, pairs, longest), targets, len(pairs), [pair.name for pair in pairs])
