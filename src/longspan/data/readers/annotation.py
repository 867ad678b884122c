"""Annotation of sequences: BED, GFF3, GTF and GenBank, known by the suffix, which the content must confirm."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from longspan.data.errors import DataFileError
from longspan.data.files import format_of, read_utf8
from longspan.data.readers.bed import Interval, read_bed
from longspan.data.readers.genbank import read_genbank
from longspan.data.readers.gff import read_gff

ANNOTATIONS = ("bed", "gff3", "gtf", "genbank")
NAMES = {"bed": "BED", "gff3": "GFF3", "gtf": "GTF", "genbank": "GenBank", "fasta": "FASTA", "fastq": "FASTQ"}
_GTF_ATTRIBUTE = re.compile(r'^\s*[\w.-]+ "')


def content_format(text: str) -> tuple[str | None, int]:
    """The format that a file's first line of data looks like, or None; and that line's number, from 1."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("##gff-version"):
            return ("gtf" if line.split()[-1:] == ["2"] else "gff3"), number
        if not line.strip() or line.startswith("#") or line.split(maxsplit=1)[0] in ("track", "browser"):
            continue
        if line.startswith("LOCUS "):
            return "genbank", number
        if line[0] in ">@":
            return ("fasta" if line[0] == ">" else "fastq"), number
        fields = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if len(fields) >= 3 and fields[1].isdigit() and fields[2].isdigit():
            return "bed", number
        if len(fields) == 9 and fields[3].isdigit() and fields[4].isdigit():
            return ("gtf" if _GTF_ATTRIBUTE.match(fields[8]) else "gff3"), number
        return None, number
    return None, 1


def read_annotation(
    path: str | Path, *, format: str | None = None, features: Sequence[str] | None = None, strands: bool = True
) -> list[Interval]:
    """The features of a file, in its order. `format` overrides what the suffix says; without either the content tells.

    `features`: the kinds to read (None: "gene"); of a BED, which has no kinds, the names in its fourth column (None:
    every interval is a gene). With `strands` each must be on + or -.

    Raises:
        DataFileError: the content is of another format, none of the features are there, or a line is malformed.
    """
    text = read_utf8(path)
    found, line = content_format(text)
    named = format or format_of(path)
    named = named if named in ANNOTATIONS else None
    kind = named or found
    if kind not in ANNOTATIONS:
        what = f"is {NAMES[kind]}, which has no features" if kind else "is neither BED, GFF3, GTF nor GenBank by its content"
        raise DataFileError(path, line, f"{what}; name an annotation, or its format by data.genes_format")
    if found is not None and found != kind:
        fix = f"rename it, or set data.genes_format={found}" if found in ANNOTATIONS else "name an annotation"
        raise DataFileError(path, line, f"is {NAMES[found]} by its content, and not {NAMES[kind]} as it is named; {fix}")
    if kind == "bed":
        intervals = read_bed(path, strands=strands, features=features)
    elif kind == "genbank":
        intervals = read_genbank(path, text).intervals(strands=strands)
    else:
        intervals = read_gff(path, text, kind, features=features or ("gene",), strands=strands)
    wanted = set(features or ("gene",))
    kept = [interval for interval in intervals if interval.kind in wanted]
    if missing := wanted - {interval.kind for interval in kept}:
        has = ", ".join(f"{name} ({count})" for name, count in Counter(i.kind for i in intervals).most_common(8))
        which = ", ".join(sorted(missing))
        raise DataFileError(path, None, f"holds no feature {which}; it has {has or 'others'}; set data.features")
    return kept
