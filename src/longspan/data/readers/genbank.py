"""GenBank flat files, sequences with features, read by Biopython."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.data.errors import DataFileError, each
from longspan.data.files import read_utf8
from longspan.data.readers.bed import Interval
from longspan.data.readers.fasta import FastaRecord
from longspan.data.vocabularies import INVALID, NUCLEOTIDES, LookupVocabulary


@dataclass(frozen=True, slots=True)
class GenBank:
    """`records` of Biopython; `lines` of each the line of its LOCUS, and those of its features, in order, from 1."""

    path: str
    records: list[Any]
    lines: list[tuple[int, list[int]]]

    def intervals(self, *, strands: bool = True) -> list[Interval]:
        """Every part of every feature (a joined location has several), named by gene or locus_tag; its kind is the key.

        Raises:
            DataFileError: a location points to another record, or with `strands` is on neither strand.
        """
        features = [
            (record, feature, line)
            for record, (_, lines) in zip(self.records, self.lines, strict=True)
            for feature, line in zip(record.features, lines, strict=True)
        ]
        parts = each(features, lambda item: list(self._parts(*item, strands)))
        return [interval for several in parts for interval in several]

    def _parts(self, record: Any, feature: Any, line: int, strands: bool) -> Iterator[Interval]:
        qualifiers = feature.qualifiers
        name = next((qualifiers[key][0] for key in ("gene", "locus_tag", "product") if key in qualifiers), "")
        if feature.location is None:
            raise DataFileError(self.path, line, f"the location of {feature.type} cannot be read")
        for part in feature.location.parts:
            if part.ref is not None:
                raise DataFileError(self.path, line, f"{feature.type} lies on another record, {part.ref}")
            strand = {1: "+", -1: "-"}.get(part.strand, ".")
            try:
                start, end = int(part.start), int(part.end)
            except TypeError as error:
                raise DataFileError(self.path, line, f"{feature.type} has a location without a place, {part}") from error
            if strands and strand == ".":
                raise DataFileError(self.path, line, f"{feature.type} is on neither strand; set data.strands=false")
            yield Interval(record.id, start, end, name, ".", strand, self.path, line, feature.type)

    def sequences(self, vocabulary: LookupVocabulary = NUCLEOTIDES) -> list[FastaRecord]:
        """The sequence of each record.

        Raises:
            DataFileError: a record has none, or a character that is no base.
        """
        from Bio.Seq import UndefinedSequenceError

        found = []
        for record, (line, _) in zip(self.records, self.lines, strict=True):
            try:
                ids = vocabulary.encode_array(bytes(record.seq))
            except UndefinedSequenceError as error:
                raise DataFileError(self.path, line, f"record {record.id!r} has no sequence; name a FASTA of it") from error
            wrong = np.flatnonzero(ids == INVALID)
            if wrong.size:
                sign = chr(bytes(record.seq)[wrong[0]])
                raise DataFileError(self.path, line, f"{sign!r} at base {wrong[0] + 1} of record {record.id!r} is no base")
            found.append(FastaRecord(record.id, record.description, ids.astype(vocabulary.dtype), self.path, line))
        return found


def read_genbank(path: str | Path, text: str | None = None) -> GenBank:
    """The records of a file; `text` its content, where it is read already.

    Raises:
        DataFileError: it is no GenBank file, breaks off, or names a record twice.
    """
    from Bio import SeqIO

    text = read_utf8(path) if text is None else text
    lines = _lines(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Biopython warns of long LOCUS lines, which many tools write
            records = list(SeqIO.parse(io.StringIO(text), "genbank"))
    except Exception as error:  # Biopython's parsers raise whatever their code meets
        raise DataFileError(path, None, f"not GenBank as Biopython reads it ({error})") from error
    if not records:
        raise DataFileError(path, None, "holds no GenBank record (LOCUS ... //)")
    if len(lines) != len(records) or any(len(r.features) != len(n) for r, (_, n) in zip(records, lines, strict=True)):
        raise DataFileError(path, None, "breaks off within a record; each ends with //")
    if not text.rstrip().endswith("//"):
        raise DataFileError(path, text.rstrip().count("\n") + 1, "breaks off: the last record does not end with //")
    seen: dict[str, int] = {}
    for record, (line, _) in zip(records, lines, strict=True):
        if record.id in seen:
            raise DataFileError(path, line, f"record {record.id!r} is named on line {seen[record.id]} already")
        seen[record.id] = line
    return GenBank(str(path), records, lines)


def _lines(text: str) -> list[tuple[int, list[int]]]:
    """The line numbers of each record: of its LOCUS, and of its features, whose keys stand in column 6."""
    found: list[tuple[int, list[int]]] = []
    within = False
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("LOCUS"):
            found.append((number, []))
        elif not line.startswith(" "):
            within = line.startswith("FEATURES")
        elif within and found and line.startswith("     ") and line[5:6].strip():
            found[-1][1].append(number)
    return found
