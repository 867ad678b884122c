"""FASTA: `>name description`, then lines of bases. Users' genomes and the bundled ones come through here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longspan.data.errors import DataFileError
from longspan.data.files import read_bytes
from longspan.data.vocabularies import INVALID, NO_SYMBOL, NUCLEOTIDES, LookupVocabulary

# how files of other formats begin, that are taken for FASTA
OTHERS = {b"LOCUS ": "GenBank", b"@": "FASTQ", b"##gff": "GFF3", b"ID   ": "EMBL"}


@dataclass(frozen=True, slots=True)
class FastaRecord:
    """`tokens` [bases], ids of the vocabulary it was read with; `line` of the header, from 1."""

    name: str
    description: str
    tokens: np.ndarray
    path: str
    line: int

    def __len__(self) -> int:
        return len(self.tokens)


def read_fasta(path: str | Path, vocabulary: LookupVocabulary = NUCLEOTIDES) -> list[FastaRecord]:
    """The records of a file, in order. A name is the header up to its first blank; the rest is the description.

    Bases are ACGT, U (read as T) and the IUPAC ambiguity codes, in either case. Blank lines, blanks at the ends of
    lines and Windows line ends are allowed; anything else (gaps, stops, numbers) is an error, never dropped.

    Raises:
        DataFileError: with the line: a character that is no base, bases before the first header, a header with no
            name or a name seen before, a record without bases.
    """
    raw = read_bytes(path)
    first = 0 if raw.startswith(b">") else raw.find(b"\n>") + 1
    if first == 0 and not raw.startswith(b">"):
        first = len(raw)
    for number, line in enumerate(raw[:first].split(b"\n"), start=1):
        if line.strip():
            other = next((name for sign, name in OTHERS.items() if line.startswith(sign)), None)
            what = f"the file is {other} by its content, not FASTA" if other else "bases before the first header"
            raise DataFileError(path, number, f"{what}; a FASTA file begins with '>name'")
    if first == len(raw):
        raise DataFileError(path, None, "holds no record; a FASTA file begins with '>name'")
    records: list[FastaRecord] = []
    seen: dict[str, int] = {}
    begin, line_number = first, raw.count(b"\n", 0, first) + 1
    while begin < len(raw):
        end = raw.find(b"\n>", begin) + 1 or len(raw)
        header, _, body = raw[begin:end].partition(b"\n")
        name, description = _header(path, line_number, header)
        if name in seen:
            raise DataFileError(path, line_number, f"record {name!r} is named on line {seen[name]} already")
        seen[name] = line_number
        tokens = _bases(path, line_number + 1, body, vocabulary)
        if not tokens.size:
            raise DataFileError(path, line_number, f"record {name!r} has no bases")
        records.append(FastaRecord(name, description, tokens, str(path), line_number))
        begin, line_number = end, line_number + raw.count(b"\n", begin, end)
    return records


def _header(path: str | Path, number: int, line: bytes) -> tuple[str, str]:
    try:
        words = line[1:].decode("utf-8").strip().split(maxsplit=1)
    except UnicodeDecodeError as error:
        raise DataFileError(path, number, "the header is not UTF-8") from error
    if not words or line[1:2].isspace():
        raise DataFileError(path, number, "a header needs a name right after '>'")
    return words[0], words[1] if len(words) > 1 else ""


def _bases(path: str | Path, number: int, body: bytes, vocabulary: LookupVocabulary) -> np.ndarray:
    """Ids of a record's lines, the first of which is line `number` of the file."""
    if vocabulary.translation is None:
        raise ValueError(f"vocabulary={vocabulary.name}: FASTA is read symbol by symbol")
    ids = np.frombuffer(body.translate(vocabulary.translation, b"\r\n"), dtype=np.uint8)
    if ids.size and ids.max() == NO_SYMBOL:
        # the rare road, taken for blanks at line ends and for errors, and the only one that looks at single lines
        stripped = [line.strip(b" \t\r") for line in body.split(b"\n")]
        for at, line in enumerate(stripped, start=number):
            wrong = np.flatnonzero(vocabulary.encode_array(line) == INVALID)
            if wrong.size:
                sign = line[wrong[0] :].decode("utf-8", errors="replace")[0]
                kind = "base; bases are ACGTU and IUPAC codes" if vocabulary is NUCLEOTIDES else f"letter of {vocabulary.name}"
                raise DataFileError(path, at, f"{sign!r} at position {wrong[0] + 1} of the line is no {kind}")
        ids = np.frombuffer(b"".join(stripped).translate(vocabulary.translation), dtype=np.uint8)
    return ids
