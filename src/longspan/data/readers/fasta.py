"""FASTA: `>name description`, then lines of bases. Users' genomes and the bundled ones come through here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longspan.data.errors import DataFileError
from longspan.data.files import read_bytes
from longspan.data.vocabulary import INVALID, NUCLEOTIDES


@dataclass(frozen=True, slots=True)
class FastaRecord:
    """`tokens` [bases] uint8, ids of the nucleotide vocabulary; `line` of the header, from 1."""

    name: str
    description: str
    tokens: np.ndarray
    path: str
    line: int

    def __len__(self) -> int:
        return len(self.tokens)


def read_fasta(path: str | Path) -> list[FastaRecord]:
    """The records of a file, in order. A name is the header up to its first blank; the rest is the description.

    Bases are ACGT, U (read as T) and the IUPAC ambiguity codes, in either case. Blank lines, blanks at the ends of
    lines and Windows line ends are allowed; anything else (gaps, stops, numbers) is an error, never dropped.

    Raises:
        DataFileError: with the line: a character that is no base, bases before the first header, a header with no
            name or a name seen before, a record without bases.
    """
    lines = read_bytes(path).split(b"\n")
    headers = [index for index, line in enumerate(lines) if line.startswith(b">")]
    for index, line in enumerate(lines[: headers[0] if headers else len(lines)]):
        if line.strip():
            raise DataFileError(path, index + 1, "bases before the first header; a FASTA file begins with '>name'")
    if not headers:
        raise DataFileError(path, None, "holds no record; a FASTA file begins with '>name'")
    records: list[FastaRecord] = []
    seen: dict[str, int] = {}
    for index, end in zip(headers, [*headers[1:], len(lines)], strict=True):
        name, description = _header(path, index, lines[index])
        if name in seen:
            raise DataFileError(path, index + 1, f"record {name!r} is named on line {seen[name]} already")
        seen[name] = index + 1
        tokens = _bases(path, index, lines[index + 1 : end])
        if not tokens.size:
            raise DataFileError(path, index + 1, f"record {name!r} has no bases")
        records.append(FastaRecord(name, description, tokens, str(path), index + 1))
    return records


def _header(path: str | Path, index: int, line: bytes) -> tuple[str, str]:
    try:
        words = line[1:].decode("utf-8").strip().split(maxsplit=1)
    except UnicodeDecodeError as error:
        raise DataFileError(path, index + 1, "the header is not UTF-8") from error
    if not words or line[1:2].isspace():
        raise DataFileError(path, index + 1, "a header needs a name right after '>'")
    return words[0], words[1] if len(words) > 1 else ""


def _bases(path: str | Path, index: int, lines: list[bytes]) -> np.ndarray:
    ids = NUCLEOTIDES.encode_array(b"".join(lines))
    if (ids == INVALID).any():
        # the rare road, taken for blanks at line ends and for errors, and the only one that looks at single lines
        stripped = [line.strip(b" \t\r") for line in lines]
        for offset, line in enumerate(stripped, start=2):
            wrong = np.flatnonzero(NUCLEOTIDES.encode_array(line) == INVALID)
            if wrong.size:
                sign = chr(line[wrong[0]])
                message = f"{sign!r} at position {wrong[0] + 1} of the line is no base; bases are ACGTU and IUPAC codes"
                raise DataFileError(path, index + offset, message)
        ids = NUCLEOTIDES.encode_array(b"".join(stripped))
    return ids.astype(np.uint8)
