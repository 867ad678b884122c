"""Labels of whole sequences, as users write them: names, numbers, or several with a separator or in a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.errors import DataFileError, each
from longspan.data.files import list_files
from longspan.data.readers import Row, is_blank


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where labels come from: a `label_column` of the table, or of `labels_path`, a table of `id_column` and it for FASTA.

    `multi_label`: a row may have several, in a list, or in a text with `label_separator` between them. `class_names`:
    the classes and their order, as a trained model needs them; None: all that occur, sorted.

    `label_columns`: several labels a row, in columns of their own: each holds 0 or 1 (true or false, yes or no) for the
    class it is named after, or each holds the name of one, or nothing; where names are numbers, 0 and 1
    among them, list them by `class_names`. `label_from`: where labels are for a folder of FASTA or texts: "file" (a file a
    class), "folder" (a folder a class), "column" (the table of `labels_path`), or "auto". `on_missing`: what becomes of
    records without a label and labels without a record: "error", or "drop", counted and printed.
    """

    label_column: str = "label"
    label_columns: Sequence[str] | None = None
    label_from: str = "auto"
    on_missing: str = "error"
    labels_path: str | None = None
    multi_label: bool = False
    label_separator: str = "|"
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_column", settings.column("label_column", self.label_column))
        settings.choice("label_from", self.label_from, ("auto", "column", "file", "folder"))
        settings.choice("on_missing", self.on_missing, settings.MISSING)
        if self.label_columns is not None:
            columns = tuple(str(settings.column("label_columns", name)) for name in self.label_columns)
            if len(set(columns)) < max(len(columns), 1):
                raise wrong_value("data.label_columns", list(columns), "give at least one column, each once")
            object.__setattr__(self, "label_columns", columns)
            object.__setattr__(self, "multi_label", True)
        settings.text("label_separator", self.label_separator)
        settings.flag("multi_label", self.multi_label)
        if settings.text_or_none("labels_path", self.labels_path) is not None:
            list_files("labels_path", str(self.labels_path))
        if self.class_names is not None:
            names = [str(name) for name in self.class_names]
            if len(set(names)) != len(names):
                raise wrong_value("data.class_names", list(self.class_names), "a name is there twice")
            object.__setattr__(self, "class_names", names)

    @property
    def known(self) -> frozenset[str] | None:
        """`class_names`, as a set."""
        return None if self.class_names is None else frozenset(self.class_names)

    def sorted(self, found: Collection[str], rows: Iterable[Row]) -> list[str]:
        """The classes that were found in rows, in order: as columns are, as the classes of a Hub's feature, or see
        `sort_classes`."""
        if self.label_columns is not None:
            return list(self.label_columns) if set(found) <= {*self.label_columns} else sort_classes(found)
        return sort_classes(found, classes_of(rows, self.label_column))

    def rule(self, rows: Sequence[Row]) -> LabelRule | ColumnsRule:
        """How labels are read from these rows.

        Columns hold 0 and 1 where all their values are that, and names where `class_names` lists no column. Else it is a slip
        where a value is neither 0 nor 1 and half of a column's values are, or it is a word among numbers 0 and 1.

        Raises:
            DataFileError: a row lacks one of `label_columns`, or they hold 0 and 1 and also what is neither.
        """
        if self.label_columns is None:
            return LabelRule(self.label_column, self.multi_label, self.label_separator, self.known)
        columns, known = tuple(self.label_columns), set(self.known or ())
        given = [(row, column, row.present(column, "label_columns")) for row in rows for column in columns]
        given = [one for one in given if not is_blank(one[2])]
        strange = {str(value).strip() for *_, value in given if flag_of(value) is None}
        names = bool(known) and not known & set(columns)  # the user says so
        if strange and not names and not strange <= known and _meant_as_flags(given):
            each(given, lambda one: checked_flag(*one))
        flags = not strange and not names
        said_no = {column for _, column, value in given if flag_of(value) is False} if flags else ()
        return ColumnsRule(columns, flags, frozenset(said_no))


FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}


def flag_of(value: Any) -> bool | None:
    """Whether a value says yes or no; None where it says neither. 1.0 is 1, also as a text."""
    number = _number(value)
    return bool(number) if number in (0, 1) else FLAGS.get(str(value).strip().lower())


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _meant_as_flags(given: Sequence[tuple[Row, str, Any]]) -> bool:
    """Whether columns are meant to hold 0 and 1 (or yes and no), though some values are neither."""
    total, flags = Counter[str](), Counter[str]()
    for _, column, value in given:
        total[column] += 1
        flags[column] += flag_of(value) is not None
    numbers = [_number(value) for *_, value in given]
    words_among = None in numbers and any(number in (0, 1) for number in numbers)
    return words_among or any(2 * flags[column] >= total[column] for column in total)


def checked_flag(row: Row, column: str, value: Any) -> bool:
    """Whether a row has the class that a column is named after.

    Raises:
        DataFileError: the value says neither yes nor no.
    """
    flag = False if value is None else flag_of(value)
    if flag is None:
        fix = "give one of them, or, where the columns hold names of classes, list the names by data.class_names"
        reason = f"column {column!r} holds {value!r} where label columns hold 0 and 1; {fix}"
        raise DataFileError(row.path, row.line, reason)
    return flag


@dataclass(frozen=True, slots=True)
class ColumnsRule:
    """Labels in columns of their own: `flags`, each says whether a row has the class it is named after; else each names one.

    A blank cell is a no, but in the columns `said_no`, which say no by 0 (or no, or false): there it is a label that lacks.
    """

    columns: tuple[str, ...]
    flags: bool
    said_no: frozenset[str] = frozenset()

    def read(self, row: Row) -> tuple[str, ...]:
        """A row's class names.

        Raises:
            DataFileError: a column is not there, or one of `flags` says neither yes nor no.
        """
        values = {column: row.present(column, "label_columns") for column in self.columns}
        if self.flags:
            for column, value in values.items():
                if column in self.said_no and is_blank(value):
                    reason = f"column {column!r} holds nothing, where other rows hold 0 or 1; give one of them"
                    raise DataFileError(row.path, row.line, reason)
            return tuple(column for column, value in values.items() if checked_flag(row, column, value))
        names = [str(value).strip() for value in values.values() if value is not None]
        return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How a label is read from a row: the column, whether a row may have several, what separates them in text, and the classes
    where they are known: see `class_name`."""

    column: str
    multi_label: bool
    separator: str
    known: frozenset[str] | None = None

    def read(self, row: Row) -> tuple[str, ...]:
        """A row's class names; without `multi_label` exactly one. An empty text or list is no class, if several may be.

        Raises:
            DataFileError: no label where one is needed, or several where one is.
        """
        value = row.get(self.column, "label_column")
        if isinstance(value, list | tuple | set):
            names = [self._name(row, one) for one in value]
        elif isinstance(value, str) and self.multi_label:
            names = [part.strip() for part in value.split(self.separator) if part.strip()]
        else:
            names = [self._name(row, value)]
        if not self.multi_label and (len(names) != 1 or not names[0]):
            reason = f"column {self.column!r} holds {value!r}, not one label; several need data.multi_label=true"
            raise DataFileError(row.path, row.line, reason)
        return tuple(dict.fromkeys(names))

    def _name(self, row: Row, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        value = class_name(row, self.column, value, self.known)
        if isinstance(value, str | int):
            return str(value).strip()
        kind = type(value).__name__
        raise DataFileError(row.path, row.line, f"column {self.column!r} holds a {kind}; labels are names or whole numbers")


def class_name(row: Row, column: str, value: Any, known: Collection[str] | None) -> Any:
    """The name that `Row.classes` has for the number of a class, else the value as it is.

    Where the classes are known and have the number, not the name, it stays: checkpoints whose classes are numbers are read on.
    """
    names = (row.classes or {}).get(column, ())
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(names):
        return value
    name = names[value]
    return value if known is not None and name not in known and str(value) in known else name


def classes_of(rows: Iterable[Row], column: str) -> tuple[str, ...]:
    """The names of a column's classes in their order, as the first row that has any says."""
    return next((row.classes[column] for row in rows if row.classes and column in row.classes), ())


def sort_classes(names: Iterable[str], order: Sequence[str] = ()) -> list[str]:
    """Class names in order: as in `order` where all are there, as numbers where all are whole numbers (so that 10 follows 9),
    else alphabetical."""
    unique = set(names)
    if unique and unique <= set(order):
        return [name for name in order if name in unique]
    if unique and all(name.lstrip("-").isascii() and name.lstrip("-").isdigit() for name in unique):
        return sorted(unique, key=lambda name: (int(name), name))
    return sorted(unique)


def indicator(labels: Sequence[Sequence[str]], class_names: Sequence[str]) -> np.ndarray:
    """0/1 array [N, K] float32; names outside `class_names` are left to the caller to have refused."""
    index = {name: column for column, name in enumerate(class_names)}
    out = np.zeros((len(labels), len(class_names)), dtype=np.float32)
    for row, names in enumerate(labels):
        for name in names:
            if name in index:
                out[row, index[name]] = 1.0
    return out
