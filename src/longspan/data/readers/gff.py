"""GFF3 and GTF, a feature a line: columns are checked here, so that an error has its line; attributes are gffutils' to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longspan.data.errors import DataFileError, each
from longspan.data.readers.bed import Interval

COLUMNS = 9
NAMED_BY = ("Name", "gene_name", "gene", "locus_tag", "ID", "gene_id")


def read_gff(path: str | Path, text: str, kind: str, *, features: Sequence[str], strands: bool) -> list[Interval]:
    """The features of a file; those not asked for come with their kind and place, and without a name.

    Coordinates become 0-based and half-open. What follows `##FASTA` is sequence.

    Raises:
        DataFileError: with the line: not nine columns, a start or end that is no whole number from 1, start > end, or
            with `strands` a feature that is asked for on neither strand.
    """
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("##FASTA"):
            break
        if line.strip() and not line.startswith("#"):
            lines.append((number, line.rstrip("\r")))
    if not lines:
        raise DataFileError(path, None, "holds no feature")
    wanted = frozenset(features)
    return each(lines, lambda line: _feature(path, kind, wanted, strands, *line))


def _feature(path: str | Path, kind: str, wanted: frozenset[str], strands: bool, number: int, line: str) -> Interval:
    fields = line.split("\t")
    if len(fields) != COLUMNS:
        hint = "; they are separated by tabs" if "\t" not in line else ""
        raise DataFileError(path, number, f"{len(fields)} columns where {kind.upper()} has {COLUMNS}{hint}")
    chrom, _, feature, start, end, score, strand = fields[:7]
    for label, value in (("start", start), ("end", end)):
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            raise DataFileError(path, number, f"{label} {value!r} is not a whole number from 1")
    if int(start) > int(end):
        raise DataFileError(path, number, f"start {start} is after end {end} (1-based, both included)")
    if not chrom.split():
        raise DataFileError(path, number, "the sequence's name (column 1) is empty")
    name = ""
    if feature in wanted:
        if strands and strand not in ("+", "-"):
            fix = "data.strands=false labels features whatever their strand"
            raise DataFileError(path, number, f"{feature} on strand {strand!r}, neither + nor -; {fix}")
        name = _name(path, number, line)
    return Interval(chrom.split()[0], int(start) - 1, int(end), name, score, strand, str(path), number, feature)


def _name(path: str | Path, number: int, line: str) -> str:
    from gffutils.feature import feature_from_line

    try:
        attributes = feature_from_line(line).attributes
        return next((attributes[key][0] for key in NAMED_BY if attributes.get(key)), "")
    except Exception as error:  # gffutils has no error type of its own
        raise DataFileError(path, number, f"the attributes (column 9) cannot be read ({error})") from error
