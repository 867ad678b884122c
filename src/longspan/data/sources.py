"""Documents from wherever they come: files of any format, the Hub, the bundled data. One shape for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data.dropped import Dropped
from longspan.data.errors import DataFileError, NoTextError, each
from longspan.data.files import list_files, stem_of
from longspan.data.readers import (
    Row,
    is_blank,
    read_csv,
    read_fasta,
    read_genbank,
    read_hub,
    read_jsonl,
    read_lines,
    read_parquet,
    read_text,
)
from longspan.data.values import Source, Splits
from longspan.data.vocabularies import LETTERS, OutsideVocabularyError, Vocabulary
from longspan.data.vocabularies.lookup import LookupVocabulary

Text = TypeVar("Text", str, bytes)
OTHER_SYMBOLS = "correct it, or choose another by data.vocabulary: bytes has all characters"
FILL = "fill it, or leave such out by data.on_empty=drop"


@dataclass(frozen=True, slots=True)
class Document:
    """`tokens` [length], ids without specials; `row` the table's columns, where it came from and for labels.

    `spans` [length]: raw bytes of each token; None where each is one byte.
    """

    name: str
    tokens: np.ndarray
    row: Row
    spans: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in a table the text and the name of a document are; `name` None numbers the rows. How tables are read, and
    where what is left out of them is counted: see `Source`.
    """

    text: str = "text"
    name: str | None = None
    delimiter: str | None = None
    header: bool = True
    quoting: bool | None = None
    on_empty: str = "error"
    dropped: Dropped = field(default_factory=Dropped, compare=False)

    @classmethod
    def of(cls, source: Source, dropped: Dropped) -> Columns:
        """Those of the configuration."""
        how = source.delimiter, source.header, source.quoting, source.on_empty
        return cls(source.text_column, source.id_column, *how, dropped)


def read_documents(
    key: str, path: str | Path, vocabulary: Vocabulary, columns: Columns, format: str | None = None
) -> list[Document]:
    """The documents of all files that `data.<key>` names (see `list_files`).

    A text file is one document, as is a FASTA record and a row of JSONL, CSV, TSV and Parquet.

    Raises:
        ConfigError: nothing is there, its format is unknown, or FASTA meets a vocabulary of texts.
        DataFileError: a file is malformed, or holds a character outside the vocabulary.
    """
    files = list_files(key, path, format)
    documents: list[Document] = []
    for (file, kind), label, prefix in zip(files, labels_of(files), prefixes_of(files), strict=True):
        documents.extend(_read_file(file, kind, vocabulary, columns, label, prefix))
    return documents


def labels_of(files: Sequence[tuple[Path, str]]) -> list[str]:
    """A name a file: its path below the folder that holds all, unique where the same name is in two folders."""
    root = Path(os.path.commonpath([file.parent for file, _ in files]))
    return [file.relative_to(root).as_posix() for file, _ in files]


def prefixes_of(files: Sequence[tuple[Path, str]]) -> list[str]:
    """The beginnings of the names of each file's documents; empty where there is one file."""
    return [f"{label}:" for label in labels_of(files)] if len(files) > 1 else [""]


def read_given(source: Source, vocabulary: Vocabulary, dropped: Dropped) -> list[Document]:
    """The documents of the user's own files, to predict on.

    Raises:
        ConfigError: none are named. Else as `read_documents`.
    """
    if source.path is None:
        raise wrong_value("data.path", None, "prediction reads your own files; set data.path")
    return read_documents("path", source.path, vocabulary, Columns.of(source, dropped), source.format)


def read_split(source: Source, splits: Splits, split: str, vocabulary: Vocabulary, dropped: Dropped) -> list[Document] | None:
    """The documents that files or a split of the Hub give for a split; None where it is to be held out of the training data.

    Raises:
        ConfigError, DataFileError: as `read_documents` and `read_hub`.
    """
    key, path = splits.files(source)[split]
    if path is not None:
        return read_documents(key, path, vocabulary, Columns.of(source, dropped), source.format)
    hub_split = splits.hub(split)
    if not source.name or hub_split is None:
        return None
    return rows_to_documents(read_hub(source.name, source.subset, hub_split), vocabulary, Columns.of(source, dropped))


def read_rows(file: Path, kind: str, columns: Columns | None = None) -> list[Row]:
    """The rows of a table in a file of format `kind`.

    Raises:
        DataFileError: the file is malformed, or is no table.
    """
    if kind == "jsonl":
        return read_jsonl(file)
    if kind in ("csv", "tsv"):
        columns = columns or Columns()
        how: dict[str, Any] = {"header": columns.header, "quoting": columns.quoting}
        rows = read_csv(file, columns.delimiter, usual="," if kind == "csv" else "\t", **how)
        return [replace(row, headed=True) for row in rows[:1]] + rows[1:] if columns.header else rows
    if kind == "parquet":
        return read_parquet(file)
    raise DataFileError(file, None, f"a file of format {kind} has no columns; take CSV, TSV, JSONL or Parquet")


def text_or_fix(read: Callable[[], Text]) -> Text:
    """What `read` gives; where it is no text, the error says what to do about it.

    Raises:
        NoTextError: there is none.
    """
    try:
        return read()
    except NoTextError as error:
        raise NoTextError(error.path, error.line, f"{error.reason}; {FILL}") from None


def rows_to_documents(rows: Iterable[Row], vocabulary: Vocabulary, columns: Columns, prefix: str = "") -> list[Document]:
    """A document for each row of a table.

    Raises:
        DataFileError: a row has no text in the column, a character outside the vocabulary, or the name of an earlier one.
    """
    empty: list[Row] = []
    named: dict[str, int] = {}

    def document(numbered: tuple[int, Row]) -> Document | None:
        number, row = numbered
        if columns.on_empty == "drop" and is_blank(row.values.get(columns.text, 0)):
            empty.append(row)
            return None
        name = number if columns.name is None else row.get(columns.name, "id_column")
        if columns.name is not None and named.setdefault(str(name), row.line) != row.line:
            raise DataFileError(row.path, row.line, f"{str(name)!r} is on line {named[str(name)]} already; ids must differ")
        data = text_or_fix(partial(row.text, columns.text)).encode("utf-8")
        return Document(f"{prefix}{name}", _encode(data, vocabulary, row.path, row.line), row)

    documents = [found for found in each(enumerate(rows), document) if found is not None]
    columns.dropped.add("rows without text", len(empty), f"{empty[0].path}, line {empty[0].line}" if empty else "")
    return documents


def retokenised(documents: Sequence[Document], reading: Vocabulary, vocabulary: Vocabulary) -> list[Document]:
    """Documents that were read in one vocabulary, in another, with the raw bytes of each token.

    Raises:
        DataFileError: a text has no tokens there.
    """
    if reading is vocabulary:
        return documents if isinstance(documents, list) else list(documents)
    out = []
    for document in documents:
        data = reading.decode_bytes(document.tokens)
        try:
            tokens, spans = vocabulary.encode_spans(data)
        except OutsideVocabularyError as error:
            line = document.row.line + data.count(b"\n", 0, error.position)
            what = f"{error.what} is not in the {vocabulary.name} vocabulary; {OTHER_SYMBOLS}"
            raise DataFileError(document.row.path, line, what) from None
        out.append(Document(document.name, tokens, document.row, spans))
    return out


def given_documents(texts: Sequence[str | bytes], vocabulary: Vocabulary, names: Sequence[str] | None = None) -> list[Document]:
    """A document for each text that a program hands over; without names they are numbered from 0.

    Raises:
        ConfigError: no texts, an empty one, one that is no text, or a character outside the vocabulary.
    """
    if isinstance(texts, (str, bytes)) or not texts:
        raise wrong_value("sequences", texts, "give a list of texts, at least one")
    if names is not None and len(names) != len(texts):
        raise wrong_value("names", list(names)[:3], f"give one for each of the {len(texts)} sequences")
    documents = []
    counted = not isinstance(vocabulary, LookupVocabulary)  # as of what is read from files, see `SequenceDataModule.reading`
    for number, text in enumerate(texts):
        if not isinstance(text, (str, bytes)) or not text:
            raise wrong_value(f"sequences[{number}]", text, "give a text that is not empty")
        try:
            tokens, spans = vocabulary.encode_spans(text.encode() if isinstance(text, str) else bytes(text))
        except ValueError as error:
            raise wrong_value(f"sequences[{number}]", text[:40], str(error)) from None
        name = str(number if names is None else names[number])
        documents.append(Document(name, tokens, Row("", number + 1, {}), spans if counted else None))
    return documents


def _read_file(file: Path, kind: str, vocabulary: Vocabulary, columns: Columns, label: str, prefix: str) -> list[Document]:
    place = {"file": stem_of(file), "folder": file.parent.name}
    if kind in ("fasta", "genbank"):
        if not isinstance(vocabulary, LookupVocabulary) or vocabulary.name not in LETTERS:
            fix = f"{file} is {kind}; set data.vocabulary=nucleotides, or data.format=text to model it as plain bytes"
            raise wrong_value("data.vocabulary", vocabulary.name, fix)
        return [
            Document(f"{prefix}{r.name}", r.tokens, Row(r.path, r.line, {"id": r.name, "description": r.description, **place}))
            for r in (read_fasta(file, vocabulary) if kind == "fasta" else read_genbank(file).sequences(vocabulary))
        ]
    if kind == "text":
        try:
            data = text_or_fix(lambda: read_text(file))
        except NoTextError:
            if columns.on_empty == "error":
                raise
            columns.dropped.add("files without text", 1, str(file))
            return []
        return [Document(label, _encode(data, vocabulary, file, None), Row(str(file), 1, place))]
    if kind == "lines":
        return [
            Document(
                f"{prefix}{row.line}",
                _encode(row.values["text"], vocabulary, row.path, row.line),
                Row(row.path, row.line, {**row.values, **place}),
            )
            for row in _full_lines(read_lines(file), columns)
        ]
    return rows_to_documents(read_rows(file, kind, columns), vocabulary, columns, prefix)


def _full_lines(rows: list[Row], columns: Columns) -> list[Row]:
    """The lines of a file that hold a text.

    Raises:
        NoTextError: some hold none, and are not to be left out.
    """
    full: list[Row] = []
    empty: list[Row] = []
    for row in rows:
        (empty if is_blank(row.values["text"]) else full).append(row)
    if empty and columns.on_empty == "error":
        more = f" (and {len(empty) - 1} more such lines)" if len(empty) > 1 else ""
        raise NoTextError(empty[0].path, empty[0].line, f"the line holds no text{more}; {FILL}")
    columns.dropped.add("lines without text", len(empty), f"{empty[0].path}, line {empty[0].line}" if empty else "")
    return full


def _encode(data: bytes, vocabulary: Vocabulary, path: str | Path, line: int | None) -> np.ndarray:
    try:
        return vocabulary.encode_bytes(data)
    except OutsideVocabularyError as error:
        at = error.position
        if line is None:
            line = data.count(b"\n", 0, at) + 1
        what = f"{error.what} (character {at + 1} of the text) is not in the {vocabulary.name} vocabulary; {OTHER_SYMBOLS}"
        raise DataFileError(path, line, what) from None
