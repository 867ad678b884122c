"""FASTA: `>name description`, then lines of bases. Users' genomes and the bundled ones come through here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longspan.data.errors import DataFileError
from longspan.data.files import read_blocks
from longspan.data.vocabularies import INVALID, NO_SYMBOL, NUCLEOTIDES, LookupVocabulary

MARK, BLANKS = ord(">"), b" \t\r"
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


@dataclass(frozen=True, slots=True)
class FastaHeader:
    """A record's first line; `line` is its number, from 1."""

    name: str
    description: str
    path: str
    line: int


def read_fasta(path: str | Path, vocabulary: LookupVocabulary = NUCLEOTIDES) -> list[FastaRecord]:
    """The records of a file, in order. A name is the header up to its first blank; the rest is the description.

    Bases are ACGT, U (read as T) and the IUPAC ambiguity codes, in either case. Blank lines, blanks at the ends of
    lines and Windows line ends are allowed; anything else (gaps, stops, numbers) is an error, never dropped.

    Raises:
        DataFileError: with the line: a character that is no base, bases before the first header, a header with no
            name or a name seen before, a record without bases.
    """
    records: list[FastaRecord] = []
    header: FastaHeader | None = None
    pieces: list[np.ndarray] = []

    def end() -> None:
        if header is not None:
            tokens = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            records.append(FastaRecord(header.name, header.description, tokens, header.path, header.line))

    for part in stream_fasta(path, vocabulary):
        if isinstance(part, FastaHeader):
            end()
            header, pieces = part, []
        else:
            pieces.append(part)
    end()
    return records


def stream_fasta(path: str | Path, vocabulary: LookupVocabulary = NUCLEOTIDES) -> Iterator[FastaHeader | np.ndarray]:
    """Each record's header, then its bases, [bases] uint8 ids, a piece of about a mebibyte at a time.

    Raises:
        DataFileError: as `read_fasta`, when the place is reached.
    """
    seen: dict[str, int] = {}
    header: FastaHeader | None = None
    bases, number, column = 0, 1, 0  # of the record; the line's number, and how much of it was in earlier pieces
    rest = b""
    blocks = read_blocks(path)
    while True:
        block = next(blocks, b"")
        buffer, ended, at = rest + block, not block, 0
        while at < len(buffer):
            if column == 0 and buffer[at] == MARK:
                end = buffer.find(b"\n", at)
                if end < 0 and not ended:
                    break
                end = len(buffer) if end < 0 else end
                _check_bases(header, bases)
                name, description = _header(path, number, buffer[at:end])
                if name in seen:
                    raise DataFileError(path, number, f"record {name!r} is named on line {seen[name]} already")
                seen[name] = number
                header, bases = FastaHeader(name, description, str(path), number), 0
                yield header
                at, number = end + 1, number + 1
                continue
            end = buffer.find(b"\n>", at) + 1 or _whole_lines(buffer, at, ended)
            if end == at:
                break
            body = buffer[at:end]
            if header is None:
                _check_blank(path, number, body)
            else:
                ids = _bases(path, number, column, body, vocabulary)
                bases += len(ids)
                if len(ids):
                    yield ids
            lines = body.count(b"\n")
            column = column + len(body) if not lines else len(body) - body.rfind(b"\n") - 1
            at, number = end, number + lines
        if ended:
            break
        rest = buffer[at:]
    if header is None:
        raise DataFileError(path, None, "holds no record; a FASTA file begins with '>name'")
    _check_bases(header, bases)


def _whole_lines(buffer: bytes, at: int, ended: bool) -> int:
    """Where to cut a buffer that goes on: after its last whole line, else between two bases of a long one; `at` if nowhere."""
    if ended:
        return len(buffer)
    end = buffer.rfind(b"\n", at) + 1
    if end > at:
        return end
    # no blank may stand on either side of the cut: at the ends of lines they are allowed, within them not
    end = len(buffer.rstrip(BLANKS)) - 1
    return end if end > at and not buffer[end - 1 : end].isspace() else at


def _check_bases(header: FastaHeader | None, bases: int) -> None:
    if header is not None and not bases:
        raise DataFileError(header.path, header.line, f"record {header.name!r} has no bases")


def _check_blank(path: str | Path, number: int, body: bytes) -> None:
    """Refuses anything before the first header."""
    for line_number, line in enumerate(body.split(b"\n"), start=number):
        if line.strip():
            other = next((name for sign, name in OTHERS.items() if line.startswith(sign)), None)
            what = f"the file is {other} by its content, not FASTA" if other else "bases before the first header"
            raise DataFileError(path, line_number, f"{what}; a FASTA file begins with '>name'")


def _header(path: str | Path, number: int, line: bytes) -> tuple[str, str]:
    try:
        words = line[1:].decode("utf-8").strip().split(maxsplit=1)
    except UnicodeDecodeError as error:
        raise DataFileError(path, number, "the header is not UTF-8") from error
    if not words or line[1:2].isspace():
        raise DataFileError(path, number, "a header needs a name right after '>'")
    return words[0], words[1] if len(words) > 1 else ""


def _bases(path: str | Path, number: int, column: int, body: bytes, vocabulary: LookupVocabulary) -> np.ndarray:
    """Ids of a record's lines, the first of which is line `number` of the file from its `column` on."""
    if vocabulary.translation is None:
        raise ValueError(f"vocabulary={vocabulary.name}: FASTA is read symbol by symbol")
    ids = np.frombuffer(body.translate(vocabulary.translation, b"\r\n"), dtype=np.uint8)
    lone = b"\r" in body and body.count(b"\r") != body.count(b"\r\n")
    if lone or (ids.size and ids.max() == NO_SYMBOL):
        # the rare road, taken for blanks at line ends and for errors, and the only one that looks at single lines
        lines = [line.rstrip(BLANKS) for line in body.split(b"\n")]
        stripped = [line.lstrip(BLANKS) for line in lines]
        for at, (line, bases) in enumerate(zip(lines, stripped, strict=True), start=number):
            wrong = np.flatnonzero(vocabulary.encode_array(bases) == INVALID) + len(line) - len(bases)
            if wrong.size:
                sign = repr(line[wrong[0] :].decode("utf-8", errors="replace")[0])
                sign = f"byte 0x{line[wrong[0]]:02x}" if "\ufffd" in sign else sign  # no UTF-8
                kind = (
                    "base; bases are ACGTU and IUPAC codes (of proteins: data.vocabulary=proteins)"
                    if vocabulary is NUCLEOTIDES
                    else f"letter of {vocabulary.name}"
                )
                place = wrong[0] + 1 + (column if at == number else 0)
                raise DataFileError(path, at, f"{sign} at position {place} of the line is no {kind}")
        ids = np.frombuffer(b"".join(stripped).translate(vocabulary.translation), dtype=np.uint8)
    return ids
