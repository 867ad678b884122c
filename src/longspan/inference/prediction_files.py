"""Writes predictions as they come: a row a sequence, or a row a run of equal labels along a record."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from torch import Tensor

from longspan.config.errors import ConfigError
from longspan.models.track_heads import APART
from longspan.records.inert import inert
from longspan.tasks import (
    ContactRegression,
    SequenceClassification,
    SequenceRegression,
    SequenceToSequence,
    TokenLabelling,
    TrackRegression,
)

Row = dict[str, Any]
SUFFIXES = (".csv", ".tsv", ".jsonl", ".bed")


class PredictionFile:
    """A CSV, TSV, JSONL or BED file, by its suffix, written as the rows come: what stands in it is whole rows at any time.

    A file of that name is replaced once the first rows are there.

    BED (0-based, half open) has the records' runs of labels: name, 1000 times the mean probability, and the strand
    where a label ends in + or -. Runs of the first label, "nothing here", are left out of it.

    Raises:
        ConfigError: another suffix, or BED for predictions that are not per base.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in SUFFIXES:
            raise ConfigError(f"output={path} must end in one of {', '.join(SUFFIXES)}")
        self._file: TextIO | None = None
        self._headed = False
        self.rows = 0

    def __enter__(self) -> PredictionFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.write([])  # no row at all is a file too
        if self._file is not None:
            self._file.close()

    def write(self, rows: Iterable[Row]) -> None:
        """Appends rows and hands them to the system at once, so that whoever looks, or a kill, finds them whole."""
        text = "".join(self._line(row) for row in rows)
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8", newline="")
        self._file.write(text)
        self._file.flush()

    def _line(self, row: Row) -> str:
        if self.path.suffix == ".bed":
            line = _bed(row)
            if line is None:
                return ""
            text = line + "\n"
        elif self.path.suffix == ".jsonl":
            text = json.dumps(row, ensure_ascii=False) + "\n"
        else:
            text = self._table_line(row)
        self.rows += 1
        return text

    def _table_line(self, row: Row) -> str:
        buffer = io.StringIO()
        dialect = "excel-tab" if self.path.suffix == ".tsv" else "excel"
        table = csv.DictWriter(buffer, [inert(name) for name in row], dialect=dialect, lineterminator="\n")
        if not self._headed:
            table.writeheader()
            self._headed = True
        table.writerow({inert(name): inert(_cell(value)) for name, value in row.items()})
        return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "|".join(str(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _bed(row: Row) -> str | None:
    if "start" not in row:
        raise ConfigError("output=*.bed is for labels along a sequence; give a .csv or .jsonl for these predictions")
    if row["class"] == 0:
        return None
    strand = row["label"][-1] if row["label"].endswith(("+", "-")) else "."
    score = round(1000 * row["probability"])
    return "\t".join(map(str, (row["id"], row["start"], row["end"], row["label"].replace("\t", " "), score, strand)))


class Rows(ABC):
    """Rows for people out of a task's predictions, fed batch by batch in the order of the data."""

    @abstractmethod
    def add(self, batch: Mapping[str, Any]) -> Iterator[Row]:
        """The rows that this batch completes."""

    def end(self) -> Iterator[Row]:
        """The row that was still open."""
        return iter(())


def rows_for(task: Any) -> Rows:
    """How the predictions of a task are written."""
    if isinstance(task, TokenLabelling):
        return LabelRuns(task.class_names)
    if isinstance(task, SequenceClassification):
        return SequenceLabels(task.class_names)
    if isinstance(task, SequenceRegression):
        return SequenceNumbers(task.target_names)
    if isinstance(task, SequenceToSequence):
        return Targets()
    if isinstance(task, TrackRegression):
        return BinNumbers(task.track_names, task.bins, pairs=isinstance(task, ContactRegression))
    return Scores()


class SequenceNumbers(Rows):
    """One row a sequence: its numbers, by name."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def add(self, batch: Mapping[str, Any]) -> Iterator[Row]:
        for name, values in zip(batch["ids"], batch["values"].tolist(), strict=True):
            yield {"id": name, **dict(zip(self.names, values, strict=True))}


class BinNumbers(Rows):
    """One row a bin, or a pair of bins: where it is, 0-based and half open, and its number of each track, by name."""

    def __init__(self, names: Sequence[str], bins: tuple[int, int, int], *, pairs: bool) -> None:
        size, count, margin = bins
        if pairs:
            first, second = torch.triu_indices(count, count, APART).tolist()
            self.places = [
                {"start": margin + a * size, "other_start": margin + b * size} for a, b in zip(first, second, strict=True)
            ]
        else:
            self.places = [{"start": margin + n * size} for n in range(count)]
        self.names, self.size = names, size

    def add(self, batch: Mapping[str, Any]) -> Iterator[Row]:
        for name, begin, values in zip(batch["ids"], batch["starts"].tolist(), batch["values"], strict=True):
            for place, numbers in zip(self.places, values.tolist(), strict=True):
                row: Row = {"id": name}
                for key, start in place.items():
                    row |= {key: begin + start, key.replace("start", "end"): begin + start + self.size}
                yield row | dict(zip(self.names, numbers, strict=True))


class Scores(Rows):
    """One row a record: the bits that its tokens cost, over all its windows."""

    def __init__(self) -> None:
        self.open: Row | None = None

    def add(self, batch: Mapping[str, Any]) -> Iterator[Row]:
        for index, name in enumerate(batch["ids"]):
            bits, tokens = float(batch["bits"][index]), int(batch["tokens"][index])
            counted = {"bytes": int(batch["bytes"][index])} if "bytes" in batch else {}
            if self.open is not None and self.open["id"] == name and int(batch["starts"][index]) > 0:
                self.open["tokens"] += tokens
                self.open["bits"] += bits
                for key, value in counted.items():
                    self.open[key] += value
            else:
                yield from self.end()
                self.open = {"id": name, "tokens": tokens, **counted, "bits": bits}

    def end(self) -> Iterator[Row]:
        if self.open is not None:
            row, self.open = self.open, None
            bits = {"bits_per_token": row["bits"] / max(1, row["tokens"])}
            if "bytes" in row:
                bits["bits_per_byte"] = row["bits"] / max(1, row["bytes"])
            yield {**row, **bits}


class Targets(Rows):
    """One row a source: the text that was found for it."""

    def add(self, batch: Mapping[str, Any]) -> Iterator[Row]:
        for name, text in zip(batch["ids"], batch["texts"], strict=True):
            yield {"id": name, "prediction": text}


class SequenceLabels(Rows):
    """One row a sequence: its label or labels, and the probability of every class."""

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self.class_names = class_names

    def add(self, batch: Mapping[str, Any]) -> Iterator[Row]:
        probabilities: Tensor = batch["probabilities"]  # (B, K)
        names = list(self.class_names or map(str, range(probabilities.shape[1])))
        for index, name in enumerate(batch["ids"]):
            chosen = batch["labels"][index]
            if chosen.dim() == 0:
                label: Any = names[int(chosen)]
            else:
                label = [one for one, yes in zip(names, chosen, strict=True) if yes]
            spread = {f"p({one})": float(p) for one, p in zip(names, probabilities[index], strict=True)}
            yield {"id": name, "label": label, **spread}


@dataclass
class _Run:
    id: str
    start: int
    end: int
    label: int
    total: float


class LabelRuns(Rows):
    """One row a run of equal labels: 0-based, half open, joined over the windows of a record."""

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self.class_names = class_names
        self.open: _Run | None = None

    def add(self, batch: Mapping[str, Any]) -> Iterator[Row]:
        for index, name in enumerate(batch["ids"]):
            length, start = int(batch["lengths"][index]), int(batch["starts"][index])
            labels = batch["labels"][index, :length]
            sure = batch["probabilities"][index, :length].double()
            values, counts = labels.unique_consecutive(return_counts=True)
            begin = 0
            for label, count in zip(values.tolist(), counts.tolist(), strict=True):
                total = float(sure[begin : begin + count].sum())
                run = self.open
                if run is not None and (run.id, run.end, run.label) == (name, start + begin, label):
                    run.end, run.total = run.end + count, run.total + total
                else:
                    yield from self.end()
                    self.open = _Run(name, start + begin, start + begin + count, label, total)
                begin += count

    def end(self) -> Iterator[Row]:
        run = self.open
        if run is not None:
            yield {
                "id": run.id,
                "start": run.start,
                "end": run.end,
                "class": run.label,
                "label": self.class_names[run.label] if self.class_names else str(run.label),
                "probability": run.total / (run.end - run.start),
            }
