"""From genes on a genome to a label for every base.

Labels: 0 no gene, 1 a gene on the + strand, 2 a gene on the - strand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longspan.data.batches import IGNORED
from longspan.data.errors import DataFileError, each
from longspan.data.readers import FastaRecord, Interval

CLASS_NAMES = ["no gene", "gene on +", "gene on -"]
OVERLAPS = ("ignore", "first")


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
