"""The files of each split in a folder that was published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longspan.config.errors import wrong_value
from longspan.data.splits import SPLITS


def split_files(folder: str, pattern: str, words: Sequence[str]) -> list[tuple[str, Path]]:
    """(split, file) of the three splits, whose names have one of `words` each in the place of `{}`.

    Raises:
        ConfigError: a file is not there.
    """
    found = []
    for split, word in zip(SPLITS, words, strict=True):
        file = Path(folder) / pattern.format(word)
        if not file.is_file():
            every = ", ".join(pattern.format(word) for word in words)
            raise wrong_value("data.path", folder, f"the folder has no {file.name}; give the folder of {every}")
        found.append((split, file))
    return found
