"""CSV and TSV, with a header line or without, whatever separates their columns."""

from __future__ import annotations

import csv
import io
import sys
from functools import partial
from pathlib import Path

from longspan.data.errors import DataFileError, each
from longspan.data.files import read_utf8
from longspan.data.readers.rows import Row

TAB = "\t"
DELIMITERS = f",;{TAB}|"
AS_CHARACTERS = "data.quoting=false takes quotes as characters like others"


def sniffed(text: str, usual: str, quoting: bool | None = True) -> str:
    """What separates the columns: `usual` if the first line has it, else of the other delimiters the one it has most of."""
    first = text[: text.find("\n")] if "\n" in text else text
    bare = first if quoting is False else "".join(first.split('"')[::2])  # what stands in quotes separates nothing
    if usual in bare:
        return usual
    best = max(DELIMITERS, key=bare.count)
    return best if best in bare else usual


def read_csv(
    path: str | Path, delimiter: str | None = ",", *, usual: str = ",", header: bool = True, quoting: bool | None = True
) -> list[Row]:
    """The rows of a file by its header's column names; every value is a str. Blank lines are allowed.

    Without a `header` the columns are named "1", "2", ... `delimiter` None: see `sniffed`, with `usual`.

    `quoting` True is RFC 4180's: a field in quotes may hold delimiters and line ends. False: quotes are characters like others.
    None: as True, but between tabs, where quotes are as often characters, no field may hold a line end.

    Raises:
        DataFileError: a row has more or fewer fields than the header, a quote is left open, or between tabs with `quoting` None
            closed on another line, the header names a column twice or not at all, or there is no row. The line is the one
            where the row begins.
    """
    # the csv module's own limit, 128 kB a field, is shorter than a genome
    csv.field_size_limit(sys.maxsize)
    text = read_utf8(path)
    delimiter = sniffed(text, usual, quoting) if delimiter is None else delimiter
    lines_of = partial(csv.reader, io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    reader = lines_of(quoting=csv.QUOTE_NONE) if quoting is False else lines_of()
    one_line = quoting is None and delimiter == TAB
    names: list[str] | None = None
    lines: list[tuple[int, list[str]]] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            fix = "a text that holds quotes stands in quotes, its own doubled; or give JSONL"
            fix = f"{AS_CHARACTERS}; else {fix}" if quoting is None else fix
            raise DataFileError(path, line, f"not {'TSV' if delimiter == TAB else 'CSV'} ({error}); {fix}") from error
        if one_line and reader.line_num > line:
            fix = f"{AS_CHARACTERS}, data.quoting=true those of fields that hold line ends"
            raise DataFileError(path, line, f"a quote that opens on this line closes on line {reader.line_num}; {fix}")
        if not fields:
            continue
        if names is None and not header:
            names = [str(number) for number in range(1, len(fields) + 1)]
        elif names is None:
            names = _header(path, line, fields)
            continue
        lines.append((line, fields))
    if not lines or names is None:
        raise DataFileError(path, None, "holds no row below its header" if header else "holds no row")
    where, columns = "the header" if header else "the first row", names
    held = delimiter if quoting is None else None
    return each(lines, lambda row: _row(path, where, columns, held, *row))


def _header(path: str | Path, line: int, fields: list[str]) -> list[str]:
    names = [name.strip() for name in fields]
    if "" in names:
        raise DataFileError(path, line, f"column {names.index('') + 1} of the header has no name")
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataFileError(path, line, f"the header names {', '.join(sorted(twice))} twice")
    return names


def _row(path: str | Path, where: str, names: list[str], delimiter: str | None, line: int, fields: list[str]) -> Row:
    if len(fields) != len(names):
        quoted = delimiter is not None and any(delimiter in field for field in fields)
        fix = f"; one of them is in quotes, which hold delimiters: {AS_CHARACTERS}" if quoted else ""
        raise DataFileError(path, line, f"{len(fields)} fields where {where} has {len(names)}{fix}")
    return Row(str(path), line, dict(zip(names, fields, strict=True)))
