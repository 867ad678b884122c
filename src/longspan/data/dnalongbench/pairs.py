"""Pairs of a gene and a region of DNA far away: what their table says, and the sequences that run from one to the other.

Legend: N pairs, M masked stretches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longspan.data.dnalongbench.layout import Layout
from longspan.data.encoded_genomes import EncodedGenome, MappedRecord
from longspan.data.errors import DataFileError
from longspan.data.readers import Row, read_bed
from longspan.data.vocabularies import NUCLEOTIDES
from longspan.data.vocabularies.base import OutsideVocabularyError

SUBSETS = {"train": "train", "valid": "validation", "test": "test"}
TARGETS = ("negative", "positive")  # in the order of their class numbers
SPANS = ("gene", "region")
COLUMNS = (
    *(f"{what}_{part}" for what in SPANS for part in ("chrom", "start", "end")),
    *("gene_id", "gene_strand", "region_id", "target", "subset"),
)
ALLELES = ("allele1", "allele2")
UNKNOWN = NUCLEOTIDES.encode_bytes(b"N")[0]


class Variant(NamedTuple):
    """Bases `start` to `end` of a record that another allele has others in the place of, [bases] uint8."""

    start: int
    end: int
    other: np.ndarray


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
    variant: Variant | None = None


class LeftOut(NamedTuple):
    """Why a row is no pair, and where it stands."""

    reason: str
    row: Row


class PairReader:
    """Makes a `Pair` of a row, or says why it is left out.

    Args:
        layout: flanks and cutoff.
        genome: what the pairs are of.
        others: {record: [N, 2] starts and ends} of what is masked where it lies between the two.
        variants: whether the region is a variant, whose alleles the row gives.
    """

    def __init__(
        self, layout: Layout, genome: EncodedGenome, others: Mapping[str, np.ndarray], *, variants: bool = False
    ) -> None:
        self.layout, self.genome, self.others, self.variants = layout, genome, others, variants
        self.records = records_of(genome)

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
        begin, end = min(tss[0], around[0]), max(tss[1], around[1])
        return Pair(
            name=f"{row.values['gene_id']}/{row.values['region_id']}",
            split=SUBSETS[subset],
            target=TARGETS.index(target),
            record=record,
            begin=begin,
            end=end,
            masks=self._masks(record.id, between, region, (begin, end)),
            variant=self._variant(row, record, *region) if self.variants else None,
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

    def _variant(self, row: Row, record: MappedRecord, start: int, end: int) -> Variant:
        """Raises DataFileError where an allele is no bases, or the first is not what the genome has there."""
        alleles = []
        for column in ALLELES:
            bases = str(row.values[column])
            try:
                alleles.append(NUCLEOTIDES.encode_bytes(bases.encode()))
            except OutsideVocabularyError as error:
                raise DataFileError(row.path, row.line, f"{column} {bases!r} is no bases: {error}") from None
            if not bases:
                raise DataFileError(row.path, row.line, f"{column} is empty; give its bases")
        own = np.asarray(self.genome.tokens[record.begin + start : record.begin + end])
        if not np.array_equal(own, alleles[0]):
            has = NUCLEOTIDES.decode_bytes(own).decode()
            reason = f"allele1 {row.values['allele1']!r} is not what the genome has at {record.id}:{start}-{end}, {has!r}"
            raise DataFileError(row.path, row.line, reason)
        return Variant(start, end, alleles[1])

    def _masks(self, chrom: str, between: tuple[int, int], region: Sequence[int], whole: tuple[int, int]) -> np.ndarray:
        """What is masked, [M, 2]: others, whole, that reach into `between`.

        Enhancers of the region that is asked about stay, as published; of variants so do those that reach out of the `whole`
        sequence.
        """
        known = self.others.get(chrom)
        if known is None or between[0] >= between[1]:
            return np.zeros((0, 2), dtype=np.int64)
        (low, high), (start, end) = between, region
        reaches = (known[:, 0] < high) & (known[:, 1] > low)
        if self.variants:
            return known[reaches & (known[:, 0] > whole[0]) & (known[:, 1] < whole[1])]
        asked = (known[:, 0] < end) & (known[:, 1] > start)
        return known[reaches & ~asked]


def records_of(genome: EncodedGenome) -> dict[str, MappedRecord]:
    """The genome's records by name."""
    return {record.id: record for record in genome.records}


def record_of(records: Mapping[str, MappedRecord], chrom: str, path: str, line: int) -> MappedRecord:
    """The genome's record of this name.

    Raises:
        DataFileError: there is none; with the file and line that name it.
    """
    if chrom not in records:
        has = ", ".join(list(records)[:5]) + (", ..." if len(records) > 5 else "")
        raise DataFileError(path, line, f"chromosome {chrom!r} is not in the FASTA of genome_fa, which has {has}")
    return records[chrom]


def read_spans(path: Path, records: Mapping[str, MappedRecord]) -> dict[str, np.ndarray]:
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
        return self._turned(pair, self._read(pair))

    def of_alleles(self, number: int) -> list[np.ndarray]:
        """[bases] uint8 as the genome has them, and [bases] with the variant's other allele."""
        pair = self.pairs[number]
        tokens, variant = self._read(pair), pair.variant
        assert variant is not None
        head, rest = tokens[: variant.start - pair.begin], tokens[variant.end - pair.begin :]
        return [self._turned(pair, own) for own in (tokens, np.concatenate([head, variant.other, rest]))]

    def _read(self, pair: Pair) -> np.ndarray:
        tokens = np.full(pair.end - pair.begin, UNKNOWN, dtype=np.uint8)
        first, last = max(pair.begin, 0), min(pair.end, len(pair.record))
        own = self.genome.tokens[pair.record.begin + first : pair.record.begin + last]
        tokens[first - pair.begin : last - pair.begin] = own
        for start, end in pair.masks.tolist():
            tokens[max(start - pair.begin, 0) : end - pair.begin] = UNKNOWN
        return tokens

    def _turned(self, pair: Pair, tokens: np.ndarray) -> np.ndarray:
        """The strand on which the gene comes first, cut."""
        if pair.reverse:
            assert NUCLEOTIDES.complement is not None
            tokens = NUCLEOTIDES.complement[tokens[::-1]].astype(np.uint8)
        return tokens[: self.longest]
