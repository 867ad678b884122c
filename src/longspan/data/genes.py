"""From features on a genome, such as genes, to a label for every base.

Labels of genes: 0 no gene, 1 a gene on the + strand, 2 a gene on the - strand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.batches import IGNORED
from longspan.data.errors import DataFileError, each
from longspan.data.files import is_file, list_files
from longspan.data.readers import ANNOTATIONS, FastaRecord, Interval, read_annotation, read_fasta, read_genbank
from longspan.data.vocabularies import NUCLEOTIDES, LookupVocabulary

OVERLAPS = ("ignore", "first", "listed")
MOST_FEATURES = 60  # labels are kept in a byte
PIECE = 2**24  # bases that are labelled at a time


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """How features become labels.

    `features`: the kinds to label, in GFF3, GTF and GenBank their type, in BED the name in column 4; None: genes.
    `strands`: each kind has a class a strand, else one. `overlap`: what a base in several is, see `label_bases`.
    `genes_format`: bed, gff3, gtf or genbank; None: by the suffix. `on_missing`: what becomes of features on
    sequences that the FASTA does not have: "error", or "drop", counted and printed.
    """

    features: Sequence[str] | None = None
    strands: bool = True
    overlap: str = "ignore"
    genes_format: str | None = None
    on_missing: str = "error"

    def __post_init__(self) -> None:
        settings.flag("strands", self.strands)
        settings.choice("overlap", self.overlap, OVERLAPS)
        settings.choice("on_missing", self.on_missing, settings.MISSING)
        if self.genes_format is not None:
            settings.choice("genes_format", self.genes_format, ANNOTATIONS)
        if self.features is not None:
            names = [settings.text("features", name) for name in self.features]
            if not 1 <= len(set(names)) == len(names) <= MOST_FEATURES:
                raise wrong_value("data.features", names, f"give 1 to {MOST_FEATURES} kinds of features, each once")
            object.__setattr__(self, "features", tuple(names))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of features."""
        return ("gene",) if self.features is None else tuple(self.features)

    @property
    def class_names(self) -> list[str]:
        """The names of the labels, from 0."""
        first = "no gene" if self.features is None else "no feature"
        if not self.strands:
            return [first, *self.kinds]
        return [first, *(f"{kind} on {strand}" for kind in self.kinds for strand in "+-")]

    def label(self, gene: Interval) -> int:
        """The label of a base in that feature alone."""
        place = self.kinds.index(gene.kind)
        return 1 + place if not self.strands else 1 + 2 * place + (gene.strand == "-")


@dataclass(frozen=True, kw_only=True)
class AnnotatedGenome:
    """A genome and where its features are: `path` (FASTA: a file, folder or glob) and `genes_path` (BED, GFF3, GTF or
    GenBank); or `path` alone (GenBank, which has both); else a `bundled` one.

    `prefix`: what the keys of the configuration have before these names.
    """

    path: str | None = None
    genes_path: str | None = None
    bundled: str | None = None
    vocabulary: str = "nucleotides"
    prefix: str = ""

    def __post_init__(self) -> None:
        settings.text_or_none(f"{self.prefix}path", self.path)
        settings.text_or_none(f"{self.prefix}genes_path", self.genes_path)
        if self.path is not None:
            for file, kind in list_files(f"{self.prefix}path", self.path):
                if kind not in ("fasta", "genbank"):
                    fix = f"{file} is of format {kind}; labelling of bases needs FASTA (.fa, .fasta) or GenBank"
                    raise wrong_value(f"data.{self.prefix}path", self.path, fix)
        elif self.bundled is not None:
            settings.choice(f"{self.prefix}bundled", self.bundled, tuple(shipped.GENOMES))
        if self.genes_path is not None:
            key = f"{self.prefix}genes_path"
            if self.path is None:
                raise wrong_value(
                    f"data.{key}", self.genes_path, f"set data.{self.prefix}path to the FASTA that these genes are on"
                )
            if not is_file(self.genes_path):
                raise wrong_value(
                    f"data.{key}",
                    self.genes_path,
                    f"no such file (looked in {Path.cwd()}); name a BED, GFF3, GTF or GenBank file",
                )

    @property
    def key(self) -> str:
        """The field that names the genome."""
        return "path" if self.path else "bundled"

    @property
    def named(self) -> str | None:
        """What it says."""
        return self.path or self.bundled

    def __bool__(self) -> bool:
        return self.named is not None

    def __str__(self) -> str:
        return self.path or f"bundled {self.bundled}"

    def records(self, vocabulary: LookupVocabulary = NUCLEOTIDES) -> list[FastaRecord]:
        """The records of all files; their names must differ, since genes name them.

        Raises:
            DataFileError: a file is malformed, or a name is in two files.
        """
        if self.path is None:
            return read_fasta(shipped.GENOMES[str(self.bundled)][0], vocabulary)
        records: dict[str, FastaRecord] = {}
        for file, kind in list_files(f"{self.prefix}path", self.path):
            for record in read_fasta(file, vocabulary) if kind == "fasta" else read_genbank(file).sequences(vocabulary):
                if record.name in records:
                    other = records[record.name].path
                    raise DataFileError(file, record.line, f"record {record.name!r} is in {other} already")
                records[record.name] = record
        return list(records.values())

    def genes(self, annotation: Annotation) -> list[Interval]:
        """Its features of the kinds that `annotation` asks for.

        Raises:
            ConfigError: no file of them is named.
            DataFileError: the file is malformed, or has none of a kind.
        """
        wanted: dict[str, Any] = {"features": annotation.features, "strands": annotation.strands}
        if self.path is None:
            return read_annotation(shipped.GENOMES[str(self.bundled)][1], **wanted)
        if self.genes_path is not None:
            return read_annotation(Path(self.genes_path).expanduser(), format=annotation.genes_format, **wanted)
        files = list_files(f"{self.prefix}path", self.path)
        if all(kind == "genbank" for _, kind in files):
            return [gene for file, _ in files for gene in read_annotation(file, **wanted)]
        fix = "your own FASTA needs its genes here; name a BED, GFF3, GTF or GenBank file"
        raise wrong_value(f"data.{self.prefix}genes_path", None, fix)


class Sized(Protocol):
    """A record that features are on: a name and how many bases it has."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...


def on_records(records: Sequence[Sized], genes: Sequence[Interval], on_missing: str) -> tuple[list[Interval], int]:
    """The features whose sequence is there, and how many are left out; "error" leaves out none, and `label_bases` refuses."""
    if on_missing == "error":
        return list(genes), 0
    known = {record.name for record in records}
    kept = [gene for gene in genes if gene.chrom in known]
    return kept, len(genes) - len(kept)


def label_bases(
    records: Sequence[Sized], genes: Sequence[Interval], overlap: str, annotation: Annotation | None = None
) -> list[np.ndarray]:
    """A label for each base of each record, int8 [bases] a record.

    A base in several features of one label has that label. A base in features of several labels (genes of both strands)
    has several right answers: with `overlap` "ignore" it is labelled -100, and neither trained on nor scored; with
    "first" it has the label of the feature that begins first (of two that begin together, the longer); with "listed"
    that of the kind that comes first in `annotation.features`, and -100 only between the strands of one kind.

    Raises:
        DataFileError: a feature is on a sequence that is not there, or reaches past its end; with its line.
    """
    pieces = label_pieces(records, genes, overlap, annotation or Annotation())
    return [np.concatenate([next(pieces) for _ in _pieces(len(record))]) for record in records]


def label_pieces(
    records: Sequence[Sized], genes: Sequence[Interval], overlap: str, annotation: Annotation
) -> Iterator[np.ndarray]:
    """The labels of `label_bases`, record after record, in pieces of at most `PIECE` bases, int8; an empty record is one."""
    sizes = {record.name: len(record) for record in records}
    each(genes, lambda gene: _check_fits(gene, sizes))
    # from the last to the first, so that for "first" the earlier feature is written over the later one
    ordered = sorted(genes, key=lambda gene: (gene.start, -gene.end), reverse=True)
    inside: dict[tuple[str, int], list[Interval]] = {}
    for gene in ordered:
        for piece in range(gene.start // PIECE, (gene.end - 1) // PIECE + 1):
            inside.setdefault((gene.chrom, piece), []).append(gene)
    for record in records:
        for piece in _pieces(len(record)):
            size = min(PIECE, len(record) - piece * PIECE)
            yield _labels(inside.get((record.name, piece), []), piece * PIECE, size, overlap, annotation)


def _pieces(size: int) -> range:
    return range(max(1, -(-size // PIECE)))


def _labels(genes: Sequence[Interval], begin: int, size: int, overlap: str, annotation: Annotation) -> np.ndarray:
    """Labels of the `size` bases from `begin` on, of features in order."""
    labels = np.zeros(size, dtype=np.int8)
    if overlap != "listed":
        _write(genes, labels, begin, annotation, overlap)
        return labels
    for kind in reversed(annotation.kinds):
        own = np.zeros(size, dtype=np.int8)
        _write([gene for gene in genes if gene.kind == kind], own, begin, annotation, "ignore")
        np.copyto(labels, own, where=own != 0)
    return labels


def _write(genes: Sequence[Interval], labels: np.ndarray, begin: int, annotation: Annotation, overlap: str) -> None:
    for gene in genes:
        part = labels[max(0, gene.start - begin) : max(0, gene.end - begin)]
        label = annotation.label(gene)
        if overlap == "ignore":
            part[:] = np.where((part == 0) | (part == label), label, IGNORED)
        else:
            part[:] = label


def _check_fits(gene: Interval, sizes: dict[str, int]) -> None:
    if gene.chrom not in sizes:
        names = ", ".join(list(sizes)[:5]) + (", ..." if len(sizes) > 5 else "")
        reason = (
            f"sequence {gene.chrom!r} is not in the FASTA, which has {names}; data.on_missing=drop leaves such features out"
        )
        raise DataFileError(gene.path, gene.line, reason)
    if gene.end > sizes[gene.chrom]:
        reason = f"end {gene.end} is past the end of {gene.chrom!r}, which has {sizes[gene.chrom]} bases"
        raise DataFileError(gene.path, gene.line, reason)
