"""BED6: intervals on named sequences, 0-based, half-open, with a strand."""

from __future__ import annotations

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


def read_bed(path: str | Path) -> list[Interval]:
    """The intervals of a file, in its order. Columns are separated by tabs (or, in a line without one, by blanks).

    Comment lines ("#", "track", "browser") and blank lines are BED's own; columns past the sixth (BED12's blocks) do
    not change the interval. Whether it fits its sequence is for who has the sequence to check.

    Raises:
        DataFileError: with the line: fewer than six columns, a start or end that is no whole number, start >= end, a
            strand other than + or -.
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
    return each(lines, lambda line: _interval(path, *line))


def _interval(path: str | Path, number: int, fields: list[str]) -> Interval:
    if len(fields) < len(COLUMNS):
        reason = f"{len(fields)} columns where BED6 has 6 ({', '.join(COLUMNS)})"
        raise DataFileError(path, number, reason)
    chrom, start, end, name, score, strand = (field.strip() for field in fields[:6])
    if not chrom:
        raise DataFileError(path, number, "the sequence's name (column 1) is empty")
    for label, value in (("start", start), ("end", end)):
        if not (value.isascii() and value.isdigit()):
            raise DataFileError(path, number, f"{label} {value!r} is not a whole number from 0")
    if int(start) >= int(end):
        raise DataFileError(path, number, f"start {start} is not before end {end} (0-based, half-open)")
    if strand not in ("+", "-"):
        raise DataFileError(path, number, f"strand {strand!r} (column 6) is neither + nor -")
    return Interval(chrom, int(start), int(end), name, score, strand, str(path), number)
