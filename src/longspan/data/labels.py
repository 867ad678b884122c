"""Labels of whole sequences, as users write them: names, numbers, or several with a separator or in a list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longspan.data import settings
from longspan.data.errors import DataConfigError, DataFileError
from longspan.data.files import list_files
from longspan.data.readers import Row


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where labels come from: a `label_column` of the table, or of `labels_path`, a table of `id_column` and it for FASTA.

    `multi_label`: a row may have several, in a list, or in a text with `label_separator` between them. `class_names`:
    the classes and their order, as a trained model needs them; None: all that occur, sorted.
    """

    label_column: str = "label"
    labels_path: str | None = None
    multi_label: bool = False
    label_separator: str = "|"
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        settings.text("label_column", self.label_column)
        settings.text("label_separator", self.label_separator)
        settings.flag("multi_label", self.multi_label)
        if settings.text_or_none("labels_path", self.labels_path) is not None:
            list_files("labels_path", str(self.labels_path))
        if self.class_names is not None:
            names = [str(name) for name in self.class_names]
            if len(set(names)) != len(names):
                raise DataConfigError("class_names", list(self.class_names), "a name is there twice")
            object.__setattr__(self, "class_names", names)

    @property
    def rule(self) -> LabelRule:
        """How a label is read from a row."""
        return LabelRule(self.label_column, self.multi_label, self.label_separator)


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How a label is read from a row: the column, whether a row may have several, and what separates them in text."""

    column: str
    multi_label: bool
    separator: str

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
        if isinstance(value, str | int):
            return str(value).strip()
        kind = type(value).__name__
        raise DataFileError(row.path, row.line, f"column {self.column!r} holds a {kind}; labels are names or whole numbers")


def sort_classes(names: Iterable[str]) -> list[str]:
    """Class names in order: as numbers where all are whole numbers (so that 10 follows 9), else alphabetical."""
    unique = set(names)
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
