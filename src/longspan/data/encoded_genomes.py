"""Genomes as files of tokens behind memory maps: encoded once and kept, so that memory does not grow with the genome.

A folder of the cache holds `tokens.bin` (one byte a base, records end to end, each after a <bos> where one is asked for) and
`records.json`; labels of bases are a folder of their own with `labels.bin` (int8).

Legend: N tokens of all records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.cache import built
from longspan.data.corpus import Corpus
from longspan.data.errors import DataFileError
from longspan.data.files import COMPRESSION, stem_of
from longspan.data.genes import Annotation, label_pieces
from longspan.data.readers import FastaHeader, Interval, Row, read_genbank, stream_fasta
from longspan.data.sources import Document, prefixes_of
from longspan.data.vocabularies import LookupVocabulary

AUTO = "auto"
LARGE = 2**28  # bytes of FASTA from which "auto" maps
SHRINKS = 4  # times that compression makes bases smaller, about
FORMAT = 1  # of the files; another one is built anew


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where a genome's tokens are: in memory, or with `memory_mapped` in files that are mapped ("auto": where it is large)."""

    memory_mapped: bool | str = AUTO
    kinds: ClassVar[tuple[str, ...]] = ("fasta", "genbank")

    def __post_init__(self) -> None:
        if self.memory_mapped != AUTO:
            settings.flag("memory_mapped", self.memory_mapped)

    def check(self, path: str | None) -> None:
        """Raises ConfigError where mapping is asked for, and no file is named."""
        if self.memory_mapped is True and path is None:
            raise wrong_value(
                "data.memory_mapped", True, "what comes with the project is small; name your own FASTA by data.path"
            )

    def maps(self, files: Sequence[tuple[Path, str]]) -> bool:
        """Whether these files (with their formats) are to be mapped.

        Raises:
            ConfigError: they are to be, and one is no FASTA or GenBank.
        """
        other = next((file for file, kind in files if kind not in self.kinds), None)
        if self.memory_mapped is True and other:
            raise wrong_value("data.memory_mapped", True, f"{other} is neither FASTA nor GenBank; set it false")
        if self.memory_mapped != AUTO or other or not files:
            return self.memory_mapped is True and bool(files)
        return sum(file.stat().st_size * (SHRINKS if file.suffix in COMPRESSION else 1) for file, _ in files) >= LARGE


@dataclass(frozen=True, slots=True)
class MappedRecord:
    """A record of an encoded genome: `size` bases, which stand from `begin` on in its tokens; `id` its name in the file."""

    name: str
    id: str
    description: str
    path: str
    line: int
    begin: int
    size: int

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True)
class EncodedGenome:
    """Tokens [N] of all records, mapped, each after a <bos> where `first` is one; `key` changes with what is in them."""

    key: str
    tokens: np.ndarray
    records: tuple[MappedRecord, ...]
    first: int | None

    def corpus(self, labels: np.ndarray | None = None) -> Corpus:
        """All of it; `labels` [N]."""
        extra = 0 if self.first is None else 1
        offsets = np.array([*(record.begin - extra for record in self.records), len(self.tokens)], dtype=np.int64)
        return Corpus(self.tokens, offsets, [record.name for record in self.records], labels)


class MappedDocuments(list[Document]):
    """The records of an encoded genome as documents, and the corpus of them."""

    def __init__(self, genome: EncodedGenome):
        super().__init__()
        self.corpus = genome.corpus()
        for record in genome.records:
            file = Path(record.path)
            place = {"id": record.id, "description": record.description, "file": stem_of(file), "folder": file.parent.name}
            tokens = genome.tokens[record.begin : record.begin + record.size]
            self.append(Document(record.name, tokens, Row(record.path, record.line, place)))


def encoded(
    files: Sequence[tuple[Path, str]], vocabulary: LookupVocabulary, *, first: int | None = None, prefixed: bool = False
) -> EncodedGenome:
    """The genome of FASTA and GenBank files, encoded now or earlier, under `LONGSPAN_CACHE`.

    Args:
        first: a token to put before each record.
        prefixed: of several files, each record is called FILE:NAME; else names must differ.

    Raises:
        DataFileError: a file is malformed, or a name is in two of them.
    """
    source = {
        "format": FORMAT,
        "vocabulary": vocabulary.name,
        "first": first,
        "prefixed": prefixed,
        "files": fingerprints(file for file, _ in files),
    }
    prefixes = prefixes_of(files) if prefixed else [""] * len(files)
    folder = built("genome", source, lambda part: _write(part, files, prefixes, vocabulary, first))
    records = tuple(MappedRecord(**record) for record in json.loads((folder / "records.json").read_text(encoding="utf-8")))
    size = records[-1].begin + records[-1].size
    return EncodedGenome(folder.name, whole_map(folder / "tokens.bin", np.uint8, size), records, first)


def whole_map(file: Path, dtype: Any, size: int) -> np.ndarray:
    """A file of the cache, mapped.

    Raises:
        DataFileError: it is not there, or not of its size any more.
    """
    found = file.stat().st_size if file.is_file() else 0
    if found != size:
        fix = f"holds {found:,} bases of the {size:,} that were written; delete {file.parent} to have it built again"
        raise DataFileError(file, None, fix)
    return np.memmap(file, dtype=dtype, mode="r")


def fingerprints(files: Any) -> list[list[Any]]:
    """Values that change with a file: its place, size and time."""
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def mapped_labels(genome: EncodedGenome, genes: Sequence[Interval], overlap: str, annotation: Annotation) -> np.ndarray:
    """A label for each base of a genome [N] int8, as `label_bases` gives them, written once and mapped.

    Raises:
        DataFileError: a feature is on a sequence that is not there, or reaches past its end; with its line.
    """
    text = json.dumps([[gene.chrom, gene.start, gene.end, gene.strand, gene.kind] for gene in genes])
    key = {
        "format": FORMAT,
        "genome": genome.key,
        "overlap": overlap,
        "classes": annotation.class_names,
        "features": hashlib.sha256(text.encode()).hexdigest(),
    }

    def write(folder: Path) -> None:
        with (folder / "labels.bin").open("wb") as out:
            for piece in label_pieces(genome.records, genes, overlap, annotation):
                out.write(piece.tobytes())

    return whole_map(built("labels", key, write) / "labels.bin", np.int8, len(genome.tokens))


def _write(
    folder: Path, files: Sequence[tuple[Path, str]], prefixes: Sequence[str], vocabulary: LookupVocabulary, first: int | None
) -> None:
    records: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    written = 0
    with (folder / "tokens.bin").open("wb") as out:
        for (file, kind), prefix in zip(files, prefixes, strict=True):
            for part in stream_fasta(file, vocabulary) if kind == "fasta" else _of_genbank(file, vocabulary):
                if isinstance(part, FastaHeader):
                    name = f"{prefix}{part.name}"
                    if name in seen:
                        raise DataFileError(file, part.line, f"record {name!r} is in {seen[name]} already")
                    seen[name] = str(file)
                    if first is not None:
                        written += out.write(bytes([first]))
                    place = {"description": part.description, "path": part.path, "line": part.line}
                    records.append({"name": name, "id": part.name, **place, "begin": written, "size": 0})
                else:
                    records[-1]["size"] += len(part)
                    written += out.write(part.tobytes())
    (folder / "records.json").write_text(json.dumps(records) + "\n", encoding="utf-8")


def _of_genbank(file: Path, vocabulary: LookupVocabulary) -> Iterator[FastaHeader | np.ndarray]:
    for record in read_genbank(file).sequences(vocabulary):
        yield FastaHeader(record.name, record.description, record.path, record.line)
        yield record.tokens
