"""The config files of DNALongBench: which files a data set is made of, and sizes in bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from longspan.data.errors import DataFileError
from longspan.data.files import read_utf8

SIZES = ("seq_len_cutoff", "tss_flank_upstream", "tss_flank_downstream", "region_flank_upstream", "region_flank_downstream")


class Setting(NamedTuple):
    """A value of a config file, and its line there."""

    value: Any
    line: int


def read_config(path: str | Path) -> dict[str, Setting]:
    """The settings of a file of `key value type` lines; a type is int, float, bool, str or list (separated by commas).

    Raises:
        DataFileError: with the line: not three words, an unknown type, a value that is not of its type, a key given twice.
    """
    found: dict[str, Setting] = {}
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3:
            raise DataFileError(path, number, f"{len(words)} words where a line is 'key value type'")
        key, value, kind = words
        if key in found:
            raise DataFileError(path, number, f"key {key!r} is on line {found[key].line} already")
        if kind not in TYPES:
            raise DataFileError(path, number, f"type {kind!r} of {key!r} is unknown; take one of {', '.join(TYPES)}")
        try:
            found[key] = Setting(TYPES[kind](value), number)
        except ValueError:
            raise DataFileError(path, number, f"value {value!r} of {key!r} is no {kind}") from None
    return found


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError(value)
    return value.lower() in ("true", "1")


TYPES: Mapping[str, Any] = {"int": int, "float": float, "bool": _flag, "str": str, "list": lambda value: value.split(",")}


@dataclass(frozen=True)
class Layout:
    """What a config file says: `files` by key, and `sizes` in bases by key."""

    files: Mapping[str, Path]
    sizes: Mapping[str, int]

    @classmethod
    def read(cls, config: Path, folder: Path, files: Sequence[str]) -> Layout:
        """The layout of a data set in `folder`, whose config names these `files`.

        Raises:
            DataFileError: the config is malformed, a key is missing or of another type, or a file that it names is not there.
        """
        found = read_config(config)
        for key in (*files, *SIZES):
            if key not in found:
                raise DataFileError(config, None, f"key {key!r} is missing; it needs {', '.join((*files, *SIZES))}")
        for key in files:
            value, line = found[key]
            if not isinstance(value, str):
                raise DataFileError(config, line, f"{key!r} is {value!r}; give a file, of type str")
            if not (folder / value).is_file():
                raise DataFileError(config, line, f"{key!r} names {value!r}, but {folder / value} is no file")
        for key in SIZES:
            value, line = found[key]
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise DataFileError(config, line, f"{key!r} is {value!r}; give a number of bases, 0 or more, of type int")
        return cls({key: folder / found[key].value for key in files}, {key: found[key].value for key in SIZES})

    def flanked(self, what: str, start: int, end: int) -> tuple[int, int]:
        """A stretch with the flanks of a "tss" or "region"."""
        return start - self.sizes[f"{what}_flank_upstream"], end + self.sizes[f"{what}_flank_downstream"]
