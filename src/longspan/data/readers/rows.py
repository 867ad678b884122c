"""A row of a table of data, with where it came from, so that an error found later can still name file and line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longspan.data.errors import DataFileError, NoTextError


def is_blank(value: Any) -> bool:
    """Whether a value is no text: nothing, or blanks alone. What is no str or bytes is not blank."""
    if isinstance(value, bytes):  # the beginning alone tells of most, which are not decoded whole
        return is_blank(value[:64].decode(errors="ignore")) and is_blank(value.decode(errors="replace"))
    return value is None or (isinstance(value, str) and (not value or value.isspace()))


@dataclass(frozen=True, slots=True)
class Row:
    """`values` column -> value; `path` and 1-based `line` where the row begins (for Parquet and the Hub: the row). `headed`:
    its columns are named by a first line, which `data.header=false` makes a row. `classes`: of columns that hold the numbers of
    classes, a name for each number."""

    path: str
    line: int
    values: dict[str, Any]
    headed: bool = False
    classes: Mapping[str, tuple[str, ...]] | None = None

    def present(self, column: str, key: str) -> Any:
        """The value in `column`, which may be None.

        Raises:
            DataFileError: the row has no such column.
        """
        if column not in self.values:
            has = ", ".join(map(str, self.values)) or "none"
            more = ", or data.header=false if they are a row" if self.headed else ""
            raise DataFileError(self.path, self.line, f"no column {column!r}; columns are {has}; set data.{key}{more}")
        return self.values[column]

    def get(self, column: str, key: str) -> Any:
        """The value in `column`, which the configuration named as `data.<key>`.

        Raises:
            DataFileError: the row has no such column, or nothing in it.
        """
        value = self.present(column, key)
        if value is None:
            raise NoTextError(self.path, self.line, f"column {column!r} holds nothing (null)")
        return value

    def text(self, column: str, key: str = "text_column") -> str:
        """The text in `column`.

        Raises:
            DataFileError: it is no text, empty, or blanks alone.
        """
        value = self.get(column, key)
        if not isinstance(value, str):
            kind = type(value).__name__
            raise DataFileError(self.path, self.line, f"column {column!r} holds a {kind}, not text; set data.{key}")
        if is_blank(value):
            what = "blanks alone" if value else "an empty text"
            raise NoTextError(self.path, self.line, f"column {column!r} holds {what}")
        return value
