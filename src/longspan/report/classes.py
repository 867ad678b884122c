"""Precision, recall and F1 of each class, and which class is taken for which, of each group of a section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longspan.records.jsonable import LARGEST_FIGURE
from longspan.records.schema import Record
from longspan.report.groups import Section
from longspan.report.numbers import MISSING, plain_number

FIGURES = ("precision", "recall", "f1")
HEADINGS = ("class", "precision", "recall", "F1", "items")
MOST_CLASSES = 60  # more make a page that nobody reads; the records have them all
WIDEST_CONFUSION = 16
CONFUSION = "Rows are the true classes, columns the predicted ones; a group's seeds are added up."


@dataclass(frozen=True)
class ClassFigures:
    """One class: means over the runs that state them, None where none does (nothing was predicted, or nothing was there)."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    items: int

    def cells(self) -> list[str]:
        return [self.name, *(plain_number(getattr(self, figure), 3) for figure in FIGURES), f"{self.items:,}"]


@dataclass(frozen=True)
class ClassTable:
    """Of one group.

    Attributes:
        split: whose figures they are.
        confusion: rows true, columns predicted; None of several labels a sequence, or where there are too many classes.
    """

    label: str
    split: str
    rows: list[ClassFigures]
    confusion: list[list[int]] | None

    def confusion_rows(self) -> list[list[str]]:
        """The matrix as text, each row with its class in front."""
        return [
            [row.name, *(f"{count:,}" if count else MISSING for count in counts)]
            for row, counts in zip(self.rows, self.confusion or [], strict=True)
        ]


def class_tables(section: Section) -> list[ClassTable]:
    """A table for each group whose records have figures of classes; those of the test split where there is one."""
    found = [table_of([run.record for run in group.runs], group.label) for group in section.groups]
    return [table for table in found if table is not None]


def table_of(records: list[Record], label: str) -> ClassTable | None:
    """One table of runs of one setting; None where none has figures of classes, or they are not of one kind."""
    figures = [one for record in records if (one := _figures(record)) is not None]
    if not figures:
        return None
    split, first = figures[0]
    names = [str(row["class"]) for row in first["classes"]]
    kept = [held for where, held in figures if where == split and [str(row["class"]) for row in held["classes"]] == names]
    rows = []
    for number, name in enumerate(names[:MOST_CLASSES]):
        of_class = [held["classes"][number] for held in kept]
        precision, recall, f1 = (_mean([row[figure] for row in of_class]) for figure in FIGURES)
        rows.append(ClassFigures(name, precision, recall, f1, sum(int(row["support"]) for row in of_class)))
    matrices = [held["confusion"] for held in kept]
    square = len(names) <= WIDEST_CONFUSION and all(
        isinstance(matrix, list) and len(matrix) == len(names) and all(len(row) == len(names) for row in matrix)
        for matrix in matrices
    )
    return ClassTable(label, split, rows, _sum(matrices) if square else None)


def _figures(record: Record) -> tuple[str, Mapping[str, Any]] | None:
    """(split, what the record has of its classes); None where it has nothing, or something else made it."""
    held = record.extra.get("per_class")
    if not isinstance(held, Mapping):
        return None
    split = "test" if "test" in held else "val"
    figures = held.get(split)
    try:
        for row in figures["classes"]:  # type: ignore[index]
            stated = [row[figure] for figure in FIGURES if row[figure] is not None]
            if (
                not all(0 <= figure <= 1 for figure in stated)
                or not 0 <= row["support"] <= LARGEST_FIGURE
                or "class" not in row
            ):
                return None
        for counts in figures["confusion"] or ():  # type: ignore[index]
            if not all(isinstance(count, int) and 0 <= count <= LARGEST_FIGURE for count in counts):
                return None
    except (TypeError, KeyError):
        return None
    return (split, figures) if figures["classes"] else None  # type: ignore[index, return-value]


def _sum(matrices: list[list[list[int]]]) -> list[list[int]]:
    return [[sum(counts) for counts in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
