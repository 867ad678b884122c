"""JSON Lines: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

from longspan.data.errors import DataFileError, each
from longspan.data.files import read_utf8
from longspan.data.readers.rows import Row


def read_jsonl(path: str | Path) -> list[Row]:
    """The objects of a file, in order. Blank lines hold no object and are allowed.

    Raises:
        DataFileError: a line is not JSON, or not an object, or the file has none.
    """
    lines = [(number, line) for number, line in enumerate(read_utf8(path).split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataFileError(path, None, "holds no JSON object")
    return each(lines, lambda line: jsonl_row(path, *line))


def jsonl_row(path: str | Path, number: int, line: str) -> Row:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataFileError(path, number, f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise DataFileError(path, number, "not usable JSON (nested too deep)") from error
    if not isinstance(values, dict):
        raise DataFileError(path, number, f"a JSON {type(values).__name__}, not an object; one object a line")
    return Row(str(path), number, values)
