"""A row of a table of data, with where it came from, so that an error found later can still name file and line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longspan.data.errors import DataFileError


@dataclass(frozen=True, slots=True)
class Row:
    """`values` column -> value; `path` and 1-based `line` where the row begins (for Parquet and the Hub: the row). `headed`:
    its columns are named by a first line, which `data.header=false` makes a row."""

    path: str
    line: int
    values: dict[str, Any]
    headed: bool = False

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
            raise DataFileError(self.path, self.line, f"column {column!r} holds nothing (null)")
        return value

    def text(self, column: str, key: str = "text_column") -> str:
        """The text in `column`.

        Raises:
            DataFileError: it is no text, or empty.
        """
        value = self.get(column, key)
        if not isinstance(value, str):
            kind = type(value).__name__
            raise DataFileError(self.path, self.line, f"column {column!r} holds a {kind}, not text; set data.{key}")
        if not value:
            raise DataFileError(self.path, self.line, f"column {column!r} holds an empty text")
        return value
