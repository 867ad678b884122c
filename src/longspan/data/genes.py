"""From genes on a genome to a label for every base.

Labels: 0 no gene, 1 a gene on the + strand, 2 a gene on the - strand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.batches import IGNORED
from longspan.data.errors import DataConfigError, DataFileError, each
from longspan.data.files import list_files
from longspan.data.readers import FastaRecord, Interval, read_bed, read_fasta

CLASS_NAMES = ["no gene", "gene on +", "gene on -"]
OVERLAPS = ("ignore", "first")


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """How genes become labels. `overlap`: what a base in genes of both strands is, see `label_bases`."""

    overlap: str = "ignore"

    def __post_init__(self) -> None:
        settings.choice("overlap", self.overlap, OVERLAPS)


@dataclass(frozen=True, kw_only=True)
class AnnotatedGenome:
    """A genome and where its genes are: `path` (FASTA: a file, folder or glob) and `genes_path` (BED6), else a `bundled` one.

    `prefix`: what the keys of the configuration have before these names.
    """

    path: str | None = None
    genes_path: str | None = None
    bundled: str | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        settings.text_or_none(f"{self.prefix}path", self.path)
        settings.text_or_none(f"{self.prefix}genes_path", self.genes_path)
        if self.path is not None:
            for file, kind in list_files(f"{self.prefix}path", self.path):
                if kind != "fasta":
                    fix = f"{file} is of format {kind}; labelling of bases needs FASTA (.fa, .fasta)"
                    raise DataConfigError(f"{self.prefix}path", self.path, fix)
        elif self.bundled is not None:
            settings.choice(f"{self.prefix}bundled", self.bundled, tuple(shipped.GENOMES))
        if self.genes_path is not None:
            key = f"{self.prefix}genes_path"
            if self.path is None:
                raise DataConfigError(key, self.genes_path, f"set data.{self.prefix}path to the FASTA that these genes are on")
            if not Path(self.genes_path).expanduser().is_file():
                raise DataConfigError(key, self.genes_path, f"no such file (looked in {Path.cwd()}); name a BED6 file")

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

    def records(self) -> list[FastaRecord]:
        """The records of all files; their names must differ, since genes name them.

        Raises:
            DataFileError: a file is malformed, or a name is in two files.
        """
        if self.path is None:
            return read_fasta(shipped.GENOMES[str(self.bundled)][0])
        records: dict[str, FastaRecord] = {}
        for file, _ in list_files(f"{self.prefix}path", self.path):
            for record in read_fasta(file):
                if record.name in records:
                    other = records[record.name].path
                    raise DataFileError(file, record.line, f"record {record.name!r} is in {other} already")
                records[record.name] = record
        return list(records.values())

    def genes(self) -> list[Interval]:
        """Its genes.

        Raises:
            DataConfigError: no file of them is named.
            DataFileError: the file is malformed.
        """
        if self.path is None:
            return read_bed(shipped.GENOMES[str(self.bundled)][1])
        if self.genes_path is None:
            key = f"{self.prefix}genes_path"
            raise DataConfigError(key, None, "your own FASTA needs its genes here; name a BED6 file")
        return read_bed(Path(self.genes_path).expanduser())


def label_bases(records: Sequence[FastaRecord], genes: Sequence[Interval], overlap: str) -> list[np.ndarray]:
    """A label for each base of each record, int8 [bases] a record.

    A base in several genes of one strand has that strand's label. A base in genes of both strands has two right
    answers: with `overlap` "ignore" it is labelled -100, and neither trained on nor scored; with "first" it has the
    strand of the gene that begins first (of two that begin together, the longer).

    Raises:
        DataFileError: a gene is on a sequence that is not there, or reaches past its end; with the line in the BED.
    """
    place = {record.name: index for index, record in enumerate(records)}
    sizes = {record.name: len(record) for record in records}
    each(genes, lambda gene: _check_fits(gene, sizes))
    labels = [np.zeros(len(record), dtype=np.int8) for record in records]
    # from the last to the first, so that for "first" the earlier gene is written over the later one
    for gene in sorted(genes, key=lambda gene: (gene.start, -gene.end), reverse=True):
        part = labels[place[gene.chrom]][gene.start : gene.end]
        label = 1 if gene.strand == "+" else 2
        if overlap == "ignore":
            part[:] = np.where((part == 0) | (part == label), label, IGNORED)
        else:
            part[:] = label
    return labels


def _check_fits(gene: Interval, sizes: dict[str, int]) -> None:
    if gene.chrom not in sizes:
        names = ", ".join(list(sizes)[:5]) + (", ..." if len(sizes) > 5 else "")
        raise DataFileError(gene.path, gene.line, f"sequence {gene.chrom!r} is not in the FASTA, which has {names}")
    if gene.end > sizes[gene.chrom]:
        reason = f"end {gene.end} is past the end of {gene.chrom!r}, which has {sizes[gene.chrom]} bases"
        raise DataFileError(gene.path, gene.line, reason)
