"""The error for a file of data that cannot be read as what it claims to be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from os import PathLike
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class DataFileError(ValueError):
    """A file of data is malformed.

    Attributes: `path` the file, `line` its 1-based line (None where a whole file is at fault), `reason`.
    """

    def __init__(self, path: str | PathLike[str], line: int | None, reason: str):
        self.path, self.line, self.reason = str(path), line, reason
        where = self.path if line is None else f"{self.path}, line {line}"
        super().__init__(f"{where}: {reason}")

    def __reduce__(self) -> tuple[type[DataFileError], tuple[str, int | None, str]]:
        return type(self), (self.path, self.line, self.reason)


class NoTextError(DataFileError):
    """A file, or a row, of data holds no text."""


def each(items: Iterable[Item], read: Callable[[Item], Result]) -> list[Result]:
    """`read` of each item of a file.

    Raises:
        DataFileError: the first that `read` raised, with how many more lines are wrong, and the first of each other kind.
    """
    results, wrong = [], []
    for item in items:
        try:
            results.append(read(item))
        except DataFileError as error:
            wrong.append(error)
    if wrong:
        first = min(wrong, key=lambda error: error.line or 0)
        more = f"{len(wrong) - 1} more such line{'s' if len(wrong) > 2 else ''}" if len(wrong) > 1 else ""
        kinds = {_kind(error): error for error in sorted(wrong, key=lambda error: error.line or 0, reverse=True)}
        # the first row of a table may say more of the same mistake
        others = sorted((error.line or 0, error.reason) for kind, error in kinds.items() if not _kind(first).startswith(kind))
        if others:
            more += "; of other kinds first " + "; ".join(f"line {line}: {reason}" for line, reason in others[:3])
        reason = f"{first.reason} (and {more})" if more else first.reason
        kind_of_error = NoTextError if isinstance(first, NoTextError) else DataFileError
        raise kind_of_error(first.path, first.line, reason) from first
    return results


def _kind(error: DataFileError) -> str:
    """The reason without its names and numbers: lines with the same mistake have the same."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", error.reason)
