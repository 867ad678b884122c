"""BED6: intervals on named sequences, 0-based, half-open, with a strand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longspan.data.errors import DataFileError, each
from longspan.data.files import read_utf8

COLUMNS = ("chrom", "start", "end", "name", "score", "strand")


@dataclass(frozen=True, slots=True)
class Interval:
    """`start` (from 0) up to but without `end`, on `strand` "+" or "-" of the sequence `chrom`."""

    chrom: str
    start: int
    end: int
    name: str
    score: str
    strand: str
    path: str
    line: int
    kind: str = "gene"


def read_bed(path: str | Path, *, strands: bool = True, features: Sequence[str] | None = None) -> list[Interval]:
    """The intervals of a file, in its order, each a gene; with `features` its name, column 4, is its kind.

    Columns are separated by tabs (or, in a line without one, by blanks).

    Comment lines ("#", "track", "browser") and blank lines are BED's own; columns past the sixth (BED12's blocks) do
    not change the interval. Whether it fits its sequence is for who has the sequence to check.

    Raises:
        DataFileError: with the line: fewer than six columns (without `strands` three, with `features` four), a start or end
            that is no whole number, start >= end, a
            strand other than + or - (where there are `strands`).
    """
    lines: list[tuple[int, list[str]]] = []
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith("#") or line.split(maxsplit=1)[0] in ("track", "browser"):
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        lines.append((number, fields))
    if not lines:
        raise DataFileError(path, None, "holds no interval")
    least = len(COLUMNS) if strands else 4 if features else 3
    return each(lines, lambda line: _interval(path, least, strands, features is not None, *line))


def _interval(path: str | Path, least: int, strands: bool, named: bool, number: int, fields: list[str]) -> Interval:
    if len(fields) < least:
        reason = f"{len(fields)} columns where BED{least} has {least} ({', '.join(COLUMNS[:least])})"
        raise DataFileError(path, number, reason)
    given = [field.strip() for field in fields[:6]]
    chrom, start, end, name, score, strand = [*given, *["", "", "", "", "", "."][len(given) :]]
    if not chrom.split():
        raise DataFileError(path, number, "the sequence's name (column 1) is empty")
    for label, value in (("start", start), ("end", end)):
        if not (value.isascii() and value.isdigit()):
            raise DataFileError(path, number, f"{label} {value!r} is not a whole number from 0")
    if int(start) >= int(end):
        raise DataFileError(path, number, f"start {start} is not before end {end} (0-based, half-open)")
    if strands and strand not in ("+", "-"):
        raise DataFileError(path, number, f"strand {strand!r} (column 6) is neither + nor -")
    kind = name if named else "gene"
    return Interval(chrom.split()[0], int(start), int(end), name, score, strand, str(path), number, kind)
