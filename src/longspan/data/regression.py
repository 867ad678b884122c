"""Numbers for whole sequences, such as an affinity or a score: one a sequence, or several in columns of their own.

Legend: B batch, T = `max_length`, N sequences, K numbers a sequence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data.classification import Example, ExampleDataset, SequenceClassificationDataModule
from longspan.data.errors import DataFileError, each
from longspan.data.readers import Row
from longspan.data.sources import Document
from longspan.data.splits import SPLITS
from longspan.data.values import Source, Splits

# the targets are spread evenly over the splits by fifths of the first
BINS = 5


class SequenceRegressionDataModule(SequenceClassificationDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B, K] float32}: a `SequenceClassificationDataModule` of numbers.

    The numbers are in `label_column`, or in each of `label_columns`. `target_mean` and `target_std` [K] are those of the
    training split, by which the task scales them.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sequence_regression",)
    source: Source = Source()
    splits: Splits = Splits(validation_fraction=0.15, test_fraction=0.15)
    bundled: ClassVar[dict[str, str]] = {}

    def __init__(self, *values: Any, **keys: Any):
        super().__init__(*values, **keys)
        if self.labels.class_names is not None:
            raise wrong_value("data.class_names", list(self.labels.class_names), "numbers have no classes; set it to null")
        self.columns = tuple(self.labels.label_columns or (self.labels.label_column,))
        self.multi_label = False
        self._set_classes(list(self.columns))

    @property
    def target_mean(self) -> list[float]:
        """[K], of the training split."""
        self.setup()
        return self._targets["train"].mean(axis=0, dtype=np.float64).tolist()

    @property
    def target_std(self) -> list[float]:
        """[K], of the training split; 1 for a number that is always the same."""
        self.setup()
        spread = self._targets["train"].std(axis=0, dtype=np.float64)
        return np.where(spread > 0, spread, 1.0).tolist()

    def _label(self, documents: list[Document]) -> list[Example]:
        return each(documents, self._numbered)

    def _numbered(self, document: Document) -> Example:
        key = "label_columns" if self.labels.label_columns else "label_column"
        numbers = tuple(_number(document.row, column, key) for column in self.columns)
        return Example(document, numbers, self._group(document))

    def _classes(self, examples: list[Example]) -> list[str]:
        return list(self.columns)

    def _spread(self, examples: Sequence[Example]) -> np.ndarray:
        values = np.array([example.labels[0] for example in examples])
        ranks = values.argsort(kind="stable").argsort(kind="stable")
        return np.eye(BINS)[ranks * BINS // len(values)]

    def _targets_of(self, examples: Sequence[Example]) -> np.ndarray:
        return np.array([example.labels for example in examples], dtype=np.float32).reshape(-1, len(self.columns))

    def class_counts(self) -> tuple[np.ndarray, int | None]:
        """Raises ConfigError: numbers have no classes to weigh."""
        raise wrong_value(
            "data.label_column", self.columns[0], "holds numbers, which have no classes to weigh; take task.class_weights=null"
        )

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of always saying the training split's mean: the mean over the K numbers of each figure."""
        examples = self.split(split)
        assert isinstance(examples, ExampleDataset) and examples.targets is not None
        error = examples.targets - np.array(self.target_mean)
        own = examples.targets.var(axis=0)
        r2 = np.where(own > 0, 1 - (error**2).mean(axis=0) / np.where(own > 0, own, 1), 0.0)
        return {
            "mse": float((error**2).mean()),
            "mae": float(np.abs(error).mean()),
            "spearman": 0.0,
            "pearson": 0.0,
            "r2": float(r2.mean()),
        }

    def describe(self) -> dict[str, Any]:
        """Source, columns, and of each split the sequences, how many are cut, and mean and spread of the numbers."""
        record: dict[str, Any] = {
            "source": str(self.source),
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": self.splits.group_column or "sequence",
            "numbers": list(self.columns),
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, ExampleDataset) and data.targets is not None
            record[split] = {
                "sequences": len(data),
                "cut": data.cut_count,
                "mean": data.targets.mean(axis=0).tolist(),
                "std": data.targets.std(axis=0).tolist(),
            }
            if split in self.in_training:
                record[split]["in_training"] = self.in_training[split]
        if self.dropped.counts:
            record["left_out"] = dict(self.dropped.counts)
        return json.loads(json.dumps(record))


def _number(row: Row, column: str, key: str) -> float:
    value = row.get(column, key)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataFileError(row.path, row.line, f"column {column!r} holds {value!r}, which is no number")
    return number
