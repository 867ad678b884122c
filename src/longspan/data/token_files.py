"""Texts of any size as files of tokens, read through memory maps: what is held in memory does not grow with the text.

A folder holds `tokens.bin`, `offsets.bin` (int64, where each document begins, and the end), `cuts.bin` (int64 pairs of raw
bytes and tokens after each piece of text, so that a share of the bytes can be cut off at the same place with any vocabulary),
`spans.bin` (raw bytes of each token, where an id does not tell) and `meta.json`, which is written last.

Legend: N tokens, D documents, P pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longspan.data.dropped import Dropped
from longspan.data.errors import DataFileError, NoTextError
from longspan.data.files import _OPENERS, readable
from longspan.data.readers import is_blank
from longspan.data.readers.jsonl import jsonl_row
from longspan.data.sources import FILL
from longspan.data.vocabularies import OutsideVocabularyError, Vocabulary

PIECE = 1 << 18  # bytes of a text that are read and encoded at a time
META = "meta.json"


@dataclass(frozen=True)
class Piece:
    """Part of a document's text: `begins`, whether it is the document's first; where it stands, for messages."""

    data: bytes
    begins: bool
    path: str
    line: int


def text_pieces(files: Sequence[tuple[Path, str]], column: str, dropped: Dropped | None = None) -> Iterator[Piece]:
    """The texts of files, a piece at a time: a text file is a document, as is a line of "lines" and a row of JSONL.

    `dropped`: counts texts that are empty, or blanks alone, which are left out; None: they are refused.

    Raises:
        DataFileError: a file cannot be read, or a text is empty.
    """
    for file, kind in files:
        opener = _OPENERS.get(file.suffix.lower(), open)
        if kind not in ("text", "lines", "jsonl"):
            raise DataFileError(file, None, f"a file of format {kind} is not streamed; take text, lines or JSONL")
        found, left_out, first = False, 0, ""
        with readable(file), opener(file, "rb") as opened:
            for piece in _whole_file(file, opened) if kind == "text" else _each_line(file, opened, kind, column):
                found = True
                if not piece.begins or not is_blank(piece.data):
                    yield piece
                elif dropped is None:
                    what = {"text": "the file", "lines": "the line"}.get(kind, f"column {column!r}")
                    raise NoTextError(file, None if kind == "text" else piece.line, f"{what} holds no text; {FILL}")
                else:
                    left_out, first = left_out + 1, first or f"{file}, line {piece.line}"
        if not found:
            raise DataFileError(file, None, "holds no text")
        if dropped is not None:
            dropped.add("texts that are empty", left_out, first)


def _whole_file(file: Path, opened: BinaryIO) -> Iterator[Piece]:
    """One piece or more; the first is blank only where the whole file is."""
    line, begins, rest = 1, True, b""
    while block := opened.read(PIECE):
        block = rest + block
        # at a line's end where there is one, else before the last character, which may not be whole
        cut = block.rfind(b"\n") + 1 or max(len(block) - 4, 0)
        if begins and is_blank(block[:cut]):
            cut = max(len(block) - 4, 0)
            cut = 0 if is_blank(block[:cut]) else cut
        data, rest = block[:cut], block[cut:]
        if data:
            yield Piece(data, begins, str(file), line)
            line, begins = line + data.count(b"\n"), False
    if rest or begins:
        yield Piece(rest, begins, str(file), line)


def _each_line(file: Path, opened: BinaryIO, kind: str, column: str) -> Iterator[Piece]:
    for number, raw in enumerate(opened, start=1):
        line = raw.rstrip(b"\r\n")
        if kind == "jsonl":
            if not line.strip():
                continue
            try:
                row = jsonl_row(file, number, line.decode("utf-8"))
            except UnicodeDecodeError:
                raise DataFileError(file, number, "is not UTF-8; convert the file") from None
            line = b"" if is_blank(row.values.get(column, 0)) else row.text(column).encode()
        yield Piece(line, True, str(file), number)


@dataclass(frozen=True)
class TokenFile:
    """Tokens [N] of all documents end to end, each after a <bos>; `offsets` [D + 1], `cuts` [P, 2], `spans` [N] or None.

    `left_out`: {what: how many} texts are not in it.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    cuts: np.ndarray
    spans: np.ndarray | None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def token_at_share(self, share: float) -> int:
        """The first token after the piece of text in which that share of the raw bytes ends."""
        at = int(np.searchsorted(self.cuts[:, 0], share * self.cuts[-1, 0]))
        return int(self.cuts[min(at, len(self.cuts) - 1), 1]) if share < 1 else len(self.tokens)


def fingerprint(files: Sequence[tuple[Path, str]], column: str, vocabulary: str) -> str:
    """Changes with the files (their places, sizes and times), how they are read, and the vocabulary's settings."""
    settings: list[Any] = [column, vocabulary]
    for file, kind in files:
        state = file.stat()
        settings.append([str(file.resolve()), kind, state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]


def build(folder: Path, pieces: Iterable[Piece], vocabulary: Vocabulary, dropped: Dropped | None = None) -> None:
    """Writes the files, in a folder beside that takes its name at the end: an interrupted build leaves none.

    `dropped`: counts what `pieces` leaves out, for `meta.json`.

    Raises:
        DataFileError: a text holds what the vocabulary has no token for, or there is no text.
    """
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        count = _write(part, pieces, vocabulary)
        own = {"vocabulary": vocabulary.name, "dtype": np.dtype(vocabulary.dtype).name}
        left_out = {} if dropped is None else {"left_out": dropped.counts}
        (part / META).write_text(json.dumps({**own, **count, **left_out}))
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(part: Path, pieces: Iterable[Piece], vocabulary: Vocabulary) -> dict[str, int]:
    tokens, raw, documents, last = 0, 0, 0, Piece(b"", False, "", 0)
    lossy = vocabulary.byte_lengths is None
    first = np.array([vocabulary.bos_id], dtype=vocabulary.dtype).tobytes()
    with (
        (part / "tokens.bin").open("wb") as out,
        (part / "offsets.bin").open("wb") as offsets,
        (part / "cuts.bin").open("wb") as cuts,
        (part / "spans.bin").open("wb") as spans,
    ):
        for piece in pieces:
            if piece.begins:
                offsets.write(np.int64(tokens).tobytes())
                out.write(first)
                spans.write(np.uint32(0).tobytes() if lossy else b"")
                tokens, documents = tokens + 1, documents + 1
            try:
                ids, counts = vocabulary.encode_spans(piece.data)
            except OutsideVocabularyError as error:
                line = piece.line + piece.data.count(b"\n", 0, error.position)
                raise DataFileError(piece.path, line, f"{error.what} is not in the {vocabulary.name} vocabulary") from None
            out.write(ids.tobytes())
            spans.write(counts.astype(np.uint32).tobytes() if lossy else b"")
            tokens, raw, last = tokens + len(ids), raw + len(piece.data), piece
            if raw // PIECE != (raw - len(piece.data)) // PIECE:  # a place to cut at, of many short texts or of a long one
                cuts.write(np.array([raw, tokens], dtype=np.int64).tobytes())
        if not documents:
            raise DataFileError(last.path or part, None, "holds no text")
        cuts.write(np.array([raw, tokens], dtype=np.int64).tobytes())
        offsets.write(np.int64(tokens).tobytes())
    return {"tokens": tokens, "documents": documents, "bytes": raw, "lossy": int(lossy)}


def opened(folder: Path) -> TokenFile:
    """The files of a folder, mapped, not read."""
    meta = json.loads((folder / META).read_text())

    def mapped(name: str, dtype: Any) -> np.ndarray:
        return np.memmap(folder / name, dtype=dtype, mode="r")

    spans = mapped("spans.bin", np.uint32) if meta["lossy"] else None
    cuts = mapped("cuts.bin", np.int64).reshape(-1, 2)
    left_out = meta.get("left_out", {})
    return TokenFile(mapped("tokens.bin", meta["dtype"]), mapped("offsets.bin", np.int64), cuts, spans, left_out)
