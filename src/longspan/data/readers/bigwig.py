"""bigWig tracks: a number for each base of a genome, read where it is asked for by pyBigWig."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data.errors import DataFileError

INSTALL = "pip install 'longspan[bigwig]'"


class BigWig:
    """A bigWig file. Each process opens it for itself, at its first question: a file is read by one at a time.

    Raises:
        DataFileError: the file is not there, or no bigWig.
        ConfigError: pyBigWig is not installed; the message says how to install it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened: tuple[int, Any] | None = None
        self.sizes: dict[str, int] = {str(name): int(size) for name, size in self._file().chroms().items()}

    def values(self, chrom: str, start: int, end: int) -> np.ndarray:
        """The track at bases `start` to `end`, [bases] float32; 0 where the file says nothing."""
        values = self._file().values(chrom, start, end, numpy=True)
        return np.nan_to_num(values.astype(np.float32), copy=False)

    def _file(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), _open(self.path)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _open(path: Path) -> Any:
    try:
        import pyBigWig
    except ImportError as error:
        raise wrong_value("data.path", str(path), f"bigWig tracks are read by pyBigWig: {INSTALL}") from error
    if not path.is_file():
        raise DataFileError(path, None, "no such file")
    try:
        file = pyBigWig.open(str(path))
        if not file.isBigWig():
            raise DataFileError(path, None, "is a bigBed file, not a bigWig")
    except RuntimeError as error:
        raise DataFileError(path, None, f"is no bigWig file ({error})") from error
    return file
