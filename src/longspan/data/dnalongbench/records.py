"""DNALongBench's TFRecords: files by their numbers, one-hot sequences as tokens, and room for what is unpacked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data.cache import cache_root
from longspan.data.errors import DataFileError
from longspan.data.readers import stream_tfrecords
from longspan.data.vocabularies import NUCLEOTIDES

SUBSETS = {"train": "train", "validation": "valid", "test": "test"}
CODES = np.frombuffer(NUCLEOTIDES.encode_bytes(b"ACGT").tobytes(), dtype=np.uint8)
UNKNOWN = int(NUCLEOTIDES.encode_bytes(b"N")[0])


def numbered(folder: Path, subset: str) -> list[Path]:
    """The files `subset-*.tfr` of a folder, in the order of the last number in their names.

    Raises:
        DataFileError: there is none, or one has no number.
    """
    files = list(folder.glob(f"{subset}-*.tfr"))
    for file in files:
        if not file.stem.rsplit("-", 1)[1].isdigit():
            raise DataFileError(file, None, f"its name does not end in a number, as {subset}-0.tfr does")
    if not files:
        raise DataFileError(folder, None, f"holds no file {subset}-*.tfr")
    return sorted(files, key=lambda file: int(file.stem.rsplit("-", 1)[1]))


def records_in(files: Sequence[Path]) -> Iterator[tuple[Path, dict[str, bytes]]]:
    """Each record of the files, with its "sequence" and "target".

    Raises:
        DataFileError: a file is no TFRecord file, or a record lacks one of the two.
    """
    for file in files:
        for record in stream_tfrecords(file):
            for name in ("sequence", "target"):
                if name not in record:
                    raise DataFileError(file, None, f"a record has no feature {name!r}, but {', '.join(record)}")
            yield file, record


def bases_of(file: Path, record: Mapping[str, bytes]) -> np.ndarray:
    """Tokens of a record's sequence, [bases] uint8: one byte for each of A, C, G and T; N where none of them is set.

    Raises:
        DataFileError: it is no such sequence.
    """
    flags = np.frombuffer(record["sequence"], dtype=np.uint8)
    if flags.size % 4 or not flags.size or flags.max() > 1:
        raise DataFileError(file, None, "a sequence is not four bytes of 0 and 1 a base (A, C, G, T)")
    flags = flags.reshape(-1, 4)
    return np.where(flags.any(1), CODES[flags.argmax(1)], UNKNOWN).astype(np.uint8)


def numbers_of(file: Path, record: Mapping[str, bytes]) -> np.ndarray:
    """A record's target, float16; NaN where nothing is known.

    Raises:
        DataFileError: its bytes are no float16, or a number is infinite.
    """
    if len(record["target"]) % 2:
        raise DataFileError(file, None, f"a target of {len(record['target']):,} bytes is no float16")
    found = np.frombuffer(record["target"], dtype=np.float16)
    if np.isinf(found).any():
        raise DataFileError(file, None, "a target holds an infinite number")
    return found


def check_room(what: str, size: int, keys: str) -> None:
    """Raises ConfigError where the cache's disk has no room for `size` bytes."""
    root = cache_root()
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        fix = f"{what} take {size / 1e9:,.1f} GB there, and {free / 1e9:,.1f} are free; set {keys}, or another folder"
        raise wrong_value("LONGSPAN_CACHE", str(root), fix)
