"""The base of data modules whose sequences have one class each and whose splits are given.

Legend: B batch, T = `max_length`, N sequences, K classes.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.data.base import SequenceDataModule
from longspan.data.baselines import class_baselines
from longspan.data.splits import SPLITS


@dataclass(frozen=True)
class LabelledSet(Dataset):
    """Item: {"tokens", "target", "id", "start"}.

    Attributes:
        tokens: called with a number below N, gives that sequence.
        targets: [N] int64 class numbers; None where they are not known.
        names: N names, None for numbers.
        cut: [N] bool, whether a sequence was longer than what is kept of it; None where none can be.
    """

    tokens: Callable[[int], np.ndarray]
    targets: np.ndarray | None
    size: int
    names: list[str] | None = None
    cut: np.ndarray | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        item = {"tokens": self.tokens(index), "id": self.names[index] if self.names else str(index), "start": 0}
        if self.targets is not None:
            item["target"] = self.targets[index]
        return item

    @property
    def cut_count(self) -> int:
        """How many were longer than what is kept of them."""
        return 0 if self.cut is None else int(self.cut.sum())

    def first(self, limit: int | None) -> LabelledSet:
        """As many, or the `limit` of them that lie evenly among all."""
        if limit is None or self.size <= limit:
            return self
        return self.only(np.linspace(0, self.size - 1, limit).round().astype(int))

    def only(self, chosen: np.ndarray) -> LabelledSet:
        """The sequences of these numbers."""
        targets = None if self.targets is None else self.targets[chosen]
        names = [self.names[n] for n in chosen] if self.names else [str(n) for n in chosen]
        cut = None if self.cut is None else self.cut[chosen]
        return LabelledSet(partial(_chosen, self.tokens, chosen), targets, len(chosen), names, cut)


def _chosen(tokens: Callable[[int], np.ndarray], chosen: np.ndarray, number: int) -> np.ndarray:
    return tokens(int(chosen[number]))


class LabelledDataModule(SequenceDataModule):
    """Base: a subclass gives its splits by `_labelled`, and says what they are by `to_record`."""

    tasks: ClassVar[tuple[str, ...]] = ("sequence_classification",)

    @abstractmethod
    def _labelled(self) -> Mapping[str, LabelledSet]:
        """Every split, whole, and `class_names` set."""

    @property
    @abstractmethod
    def to_record(self) -> dict[str, Any]:
        """Where the data is from and the settings that make it what it is, for the record."""

    def _load(self) -> dict[str, Dataset]:
        found = self._labelled()
        return {split: found[split].first(self.limits[split]) for split in SPLITS}

    def _classes(self, names: list[str]) -> None:
        self.class_names, self.num_classes = names, len(names)

    def _counts(self, split: str) -> np.ndarray:
        data = self.split(split)
        assert isinstance(data, LabelledSet) and data.targets is not None
        return np.bincount(data.targets, minlength=self.num_classes or 0)

    def class_counts(self) -> tuple[np.ndarray, int | None]:
        """Training sequences of each class, [K]."""
        return self._counts("train"), None

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of always saying the training split's commonest class."""
        self.split(split)
        return class_baselines(self._counts("train"), self._counts(split))

    def describe(self) -> dict[str, Any]:
        """Where the data is from, and of each split the sequences of each class, how many are cut at `max_length`, and
        how many images that are given for it are training images too."""
        record: dict[str, Any] = {**self.to_record, "max_length": self.max_length}
        for split in SPLITS:
            counts = self._counts(split).tolist()
            record[split] = {"sequences": sum(counts), "classes": dict(zip(self.class_names or (), counts, strict=True))}
            cut = self.split(split).cut  # type: ignore[attr-defined]
            if cut is not None:
                record[split]["cut"] = int(cut.sum())
            if split in self.in_training:
                record[split]["in_training"] = self.in_training[split]
        if self.dropped.counts:
            record["left_out"] = dict(self.dropped.counts)
        return json.loads(json.dumps(record))
