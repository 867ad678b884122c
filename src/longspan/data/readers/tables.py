"""CSV and TSV with a header line."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from longspan.data.errors import DataFileError, each
from longspan.data.files import read_utf8
from longspan.data.readers.rows import Row


def read_csv(path: str | Path, delimiter: str = ",") -> list[Row]:
    """The rows of a file by its header's column names; every value is a str. Blank lines are allowed.

    Quoting is RFC 4180's (a quoted field may hold line ends); tab-separated files (`delimiter="\\t"`) follow it too.

    Raises:
        DataFileError: a row has more or fewer fields than the header, a quote is left open, the header names a column
            twice or not at all, or there is no row. The line is the one where the row begins.
    """
    # the csv module's own limit, 128 kB a field, is shorter than a genome
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    lines: list[tuple[int, list[str]]] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise DataFileError(path, line, f"not CSV ({error})") from error
        if not fields:
            continue
        if header is None:
            header = [name.strip() for name in fields]
            if "" in header:
                raise DataFileError(path, line, f"column {header.index('') + 1} of the header has no name")
            if twice := {name for name in header if header.count(name) > 1}:
                raise DataFileError(path, line, f"the header names {', '.join(sorted(twice))} twice")
            continue
        lines.append((line, fields))
    if not lines or header is None:
        raise DataFileError(path, None, "holds no row below its header")
    names = header
    return each(lines, lambda row: _row(path, names, *row))


def _row(path: str | Path, header: list[str], line: int, fields: list[str]) -> Row:
    if len(fields) != len(header):
        raise DataFileError(path, line, f"{len(fields)} fields where the header has {len(header)}")
    return Row(str(path), line, dict(zip(header, fields, strict=True)))
