"""Pairs of a source and a target from wherever they come: tables, two files of lines, the Hub, the bundled addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longspan.config.errors import wrong_value
from longspan.data import bundled as shipped
from longspan.data.errors import DataFileError, each
from longspan.data.files import list_files, read_utf8
from longspan.data.readers import Row, read_hub, read_jsonl
from longspan.data.sources import Columns, read_rows


@dataclass(frozen=True, slots=True)
class Pair:
    """`source` and `target` texts; `name`; equal `group`s are never in two splits; `row` where it came from."""

    source: str
    target: str
    name: str
    group: str
    row: Row


def pairs_of_tables(
    key: str, path: str, format: str | None, source: str, target: str | None, columns: Columns | None = None
) -> list[Pair]:
    """A pair for each row of the tables that `data.<key>` names; a column within a column is written `translation.de`.

    `target` None: sources alone, as for predictions. `columns`: how CSV and TSV are read.

    Raises:
        DataFileError: a row lacks a column, or has no text in it.
    """
    pairs: list[Pair] = []
    for file, kind in list_files(key, path, format):
        if kind in ("text", "lines", "fasta"):
            raise wrong_value(
                f"data.{key}", path, f"{file} has no columns; give JSONL, TSV, CSV or Parquet, or data.target_path too"
            )
        pairs += pairs_of_rows(read_rows(file, kind, columns), source, target)
    return pairs


def pairs_of_hub(name: str, subset: str | None, split: str, source: str, target: str) -> list[Pair]:
    """A pair for each row of a split of a Hugging Face data set."""
    return pairs_of_rows(read_hub(name, subset, split), source, target)


def pairs_of_rows(rows: Iterable[Row], source: str, target: str | None) -> list[Pair]:
    """A pair for each row, numbered from 0; the error for bad ones names the first and counts the others."""

    def pair(numbered: tuple[int, Row]) -> Pair:
        number, row = numbered
        flat = replace(row, values=_flat(row.values))
        text = flat.text(source, "source_column")
        return Pair(text, "" if target is None else flat.text(target, "target_column"), str(number), text, row)

    return each(list(enumerate(rows)), pair)


def pairs_of_lines(path: str, target_path: str | None) -> list[Pair]:
    """Line n of one file with line n of another.

    Raises:
        DataFileError: one file has more lines than the other, or an empty line.
    """
    sources = _lines(Path(path).expanduser())
    targets = [""] * len(sources) if target_path is None else _lines(Path(target_path).expanduser())
    if len(sources) != len(targets):
        long, short = (path, target_path) if len(sources) > len(targets) else (target_path, path)
        most, least = max(len(sources), len(targets)), min(len(sources), len(targets))
        raise DataFileError(str(long), least + 1, f"has no partner: {long} has {most} lines and {short} has {least}")

    def pair(numbered: tuple[int, tuple[str, str]]) -> Pair:
        number, (source, target) = numbered
        for file, text in ((path, source), (target_path, target)):
            if file is not None and not text.strip():
                raise DataFileError(file, number, "is empty; fill it, or take this line out of both files")
        return Pair(source, target, str(number - 1), source, Row(str(path), number, {}))

    return each(list(enumerate(zip(sources, targets, strict=True), start=1)), pair)


def _lines(file: Path) -> list[str]:
    lines = read_utf8(file).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _flat(values: dict) -> dict:
    out = dict(values)
    for name, value in values.items():
        if isinstance(value, dict):
            out.update({f"{name}.{inner}": found for inner, found in value.items()})
    return out


# a full stop, question or exclamation mark, then a blank and a capital: where one sentence of the addresses ends
SENTENCE_END = re.compile(r"(?<=[a-z)\"][.!?])\s+(?=[A-Z])")
SHORTEST_SENTENCE = 24


def summaries_of_addresses(longest: int, longest_target: int) -> list[Pair]:
    """Passages of the bundled addresses, and the first sentence of each as its summary.

    A passage begins with a sentence of `SHORTEST_SENTENCE` to `longest_target` - 2 bytes, goes on for at least another half of
    it, and has at most `longest` bytes. Its group is its address's year, so that whole addresses are held out.
    """
    pairs: list[Pair] = []
    for row in read_jsonl(shipped.ADDRESSES):
        sentences = [" ".join(part.split()) for part in SENTENCE_END.split(row.values["text"])]
        number = 0
        while number < len(sentences):
            first, passage, number = sentences[number], sentences[number], number + 1
            while number < len(sentences) and len(passage.encode()) < longest // 2:
                passage, number = f"{passage} {sentences[number]}", number + 1
            fits = SHORTEST_SENTENCE <= len(first.encode()) <= longest_target - 2
            if fits and len(passage) > 1.5 * len(first):
                text = passage.encode()[:longest].decode(errors="ignore")
                year = str(row.values["year"])
                pairs.append(Pair(text, first, f"{year}:{len(pairs)}", year, row))
    return pairs


def lead(source: str, words: int) -> str:
    """The first words of a text: what a summary has to beat."""
    return " ".join(source.split()[:words])


def commonest(targets: Sequence[str]) -> str:
    """The target that occurs most often, the first in alphabetical order of those."""
    counts: dict[str, int] = {}
    for target in targets:
        counts[target] = counts.get(target, 0) + 1
    return min(counts, key=lambda target: (-counts[target], target))
