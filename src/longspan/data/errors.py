"""What goes wrong with data: a file that cannot be read as what it claims to be, or a setting that cannot be met."""

from __future__ import annotations

from os import PathLike


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


class DataConfigError(ValueError):
    """A `data.<key>` of the configuration has a value that cannot be used; the message says which, and the fix."""

    def __init__(self, key: str, value: object, fix: str):
        self.key, self.value, self.fix = key, value, fix
        super().__init__(f"data.{key}={value!r}: {fix}")

    def __reduce__(self) -> tuple[type[DataConfigError], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.fix)


class ResumeError(ValueError):
    """A checkpoint stopped in the middle of an epoch over other data, or in another order, than is loaded now."""
