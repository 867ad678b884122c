"""Plain text: a file is a document, or every line of it is. Bytes are taken as they are, a byte order mark aside."""

from __future__ import annotations

from pathlib import Path

from longspan.data.errors import NoTextError
from longspan.data.files import read_bytes
from longspan.data.readers.rows import Row, is_blank


def read_text(path: str | Path) -> bytes:
    """The whole file as one document.

    Raises:
        NoTextError: the file is empty, or blanks alone.
        DataFileError: it cannot be read.
    """
    data = read_bytes(path)
    if is_blank(data):
        raise NoTextError(path, None, "the file holds blanks alone")
    return data


def read_lines(path: str | Path) -> list[Row]:
    """Every line, blank ones too, as a row with the column "text" (bytes, without the line's end).

    Raises:
        DataFileError: the file is empty or cannot be read.
    """
    lines = read_bytes(path).replace(b"\r\n", b"\n").split(b"\n")
    lines = lines[:-1] if not lines[-1] else lines  # what follows the last line's end is no line
    return [Row(str(path), number, {"text": line}) for number, line in enumerate(lines, start=1)]
