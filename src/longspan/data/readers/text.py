"""Plain text: a file is a document, or every line of it is. Bytes are taken as they are, a byte order mark aside."""

from __future__ import annotations

from pathlib import Path

from longspan.data.files import read_bytes
from longspan.data.readers.rows import Row


def read_text(path: str | Path) -> bytes:
    """The whole file as one document.

    Raises:
        DataFileError: the file is empty or cannot be read.
    """
    return read_bytes(path)


def read_lines(path: str | Path) -> list[Row]:
    """Every line that is not blank, as a row with the column "text" (bytes, without the line's end).

    Raises:
        DataFileError: the file is empty or cannot be read.
    """
    lines = read_bytes(path).replace(b"\r\n", b"\n").split(b"\n")
    return [Row(str(path), number, {"text": line}) for number, line in enumerate(lines, start=1) if line.strip()]
