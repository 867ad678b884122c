"""Classification of whole sequences: texts and genomes, one label or several.

Legend: B batch, T = `max_length`, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import class_baselines, label_baselines
from longspan.data.errors import DataConfigError, DataFileError, each
from longspan.data.files import list_files
from longspan.data.hiv1 import Hiv1
from longspan.data.labels import Labels, indicator, sort_classes
from longspan.data.readers import Row
from longspan.data.sources import Columns, Document, read_documents, read_given, read_rows, read_split
from longspan.data.splits import SPLITS, by_groups
from longspan.data.values import Loading, Source, Splits, check_files, gathered, source_of


@dataclass(frozen=True, slots=True)
class Example:
    """A document with its class names, and the group that must not be parted by a split."""

    document: Document
    labels: tuple[str, ...]
    group: str | bytes


class ExampleDataset(Dataset):
    """Item: {"tokens" [<= T], "target" int64 or [K] float32, "id", "start"}; longer documents are cut at T."""

    def __init__(self, documents: Sequence[Document], targets: np.ndarray | None, max_length: int):
        self.documents, self.targets, self.max_length = documents, targets, max_length

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> dict:
        document = self.documents[index]
        item = {"tokens": document.tokens[: self.max_length], "id": document.name, "start": 0}
        if self.targets is not None:
            item["target"] = self.targets[index]
        return item


class SequenceClassificationDataModule(SequenceDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B] int64, or [B, K] float with `multi_label`}.

    Where from: `path` (CSV, TSV, JSONL, Parquet with `text_column` and `label_column`; or FASTA with `labels_path`, a
    table of `id_column` and `label_column`), or `name` (a Hugging Face data set), else the `bundled` "hiv1".
    Several labels of one sequence are a list, or a text with `label_separator` between them.

    What is held out: `validation_path`, `test_path` (the Hub's `validation_split`, `test_split`) where given, else
    shares of the sequences, classes spread evenly. Equal sequences stay in one split, and with `group_column` all
    sequences of a group do. Sequences longer than `max_length` keep their head; `describe` counts them.

    The bundled HIV-1 genomes are labelled with the parent subtypes that the name of their recombinant form tells
    (forms named `cpx`, and pure subtypes, are left out: 562 genomes of 149 forms are kept), and a form is never in
    two splits. Where a parent is itself a `cpx` form, that part adds no label. Parents in fewer than `min_groups`
    forms are no class of their own, since they could not be in every split.

    `class_names` fixes the classes and their order, as a trained model needs it when predicting.

    Raises:
        DataConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sequence_classification",)

    # what is read and held out where nothing else is said
    source: Source = Source(bundled="hiv1", vocabulary="nucleotides")
    splits: Splits = Splits(validation_fraction=0.15, test_fraction=0.15)
    bundled: ClassVar[dict[str, str]] = {"hiv1": "nucleotides"}

    def __init__(
        self,
        source: Source | str | None = None,
        splits: Splits | None = None,
        labels: Labels | None = None,
        loading: Loading | None = None,
        **keys: Any,
    ):
        given = source_of(source, self.source), splits or self.splits, labels or Labels(), loading or Loading(max_length=4096)
        self.source, self.splits, self.labels, loading, self.hiv1 = gathered(self, keys, *given, Hiv1())
        super().__init__(self.source.vocabulary, loading)
        self._is_hiv1 = self.source.bundled_of(self.bundled) == "hiv1"
        check_files(self.source, self.splits)
        if self._is_hiv1:
            self.labels = replace(self.labels, multi_label=True)
        self.multi_label = self.labels.multi_label
        self._targets: dict[str, np.ndarray] = {}
        if self.labels.class_names is not None:
            self._set_classes(list(self.labels.class_names))

    def _set_classes(self, names: list[str]) -> None:
        self.class_names, self.num_classes = names, len(names)

    def _load(self) -> dict[str, Dataset]:
        given = {split: self._read(split) for split in SPLITS}
        pool = given["train"]
        assert pool is not None
        everything = [example for examples in given.values() for example in examples or ()]
        self._set_classes(self._classes(everything))
        assert self.class_names is not None
        shares = self.splits.shares(given)
        settings.enough_groups(
            self.source.key, self.source.named, [example.group for example in pool],
            1 + sum(share > 0 for share in shares.values()), self.splits.group_column or "text",
        )  # fmt: skip
        spread = indicator([example.labels for example in pool], self.class_names)
        chosen = by_groups([example.group for example in pool], spread, seed=self.seed, **shares)
        sets: dict[str, Dataset] = {}
        for split in SPLITS:
            examples = given[split] if split != "train" else None
            sets[split] = self._dataset(split, examples or [pool[index] for index in chosen[split]])
        return sets

    def _load_predict(self) -> Dataset:
        return self._given_set(read_given(self.source, self.vocabulary))

    def _given_set(self, documents: list[Document]) -> Dataset:
        return ExampleDataset(documents, None, self.max_length)

    def _dataset(self, split: str, examples: list[Example]) -> ExampleDataset:
        limit = self.limits[split]
        if limit is not None and len(examples) > limit:
            examples = [examples[i] for i in np.linspace(0, len(examples) - 1, limit).round().astype(int)]
        assert self.class_names is not None
        targets = indicator([example.labels for example in examples], self.class_names)
        if not self.multi_label:
            targets = targets.argmax(axis=1)
        self._targets[split] = targets
        return ExampleDataset([example.document for example in examples], targets, self.max_length)

    def _classes(self, examples: list[Example]) -> list[str]:
        """The class names, and a check that each label is one of them.

        Raises:
            DataFileError: a label is not in `class_names`.
            DataConfigError: fewer than two classes (one, with several labels a sequence).
        """
        if self.labels.class_names is not None:
            known = set(self.labels.class_names)
            for example in examples:
                if not self._is_hiv1 and (strange := [name for name in example.labels if name not in known]):
                    row = example.document.row
                    raise DataFileError(row.path, row.line, f"label {strange[0]!r} is not in data.class_names")
            return list(self.labels.class_names)
        if self._is_hiv1:
            return self.hiv1.classes([(example.labels, example.group) for example in examples])
        names = sort_classes(name for example in examples for name in example.labels)
        if len(names) < (1 if self.multi_label else 2):
            fix = f"gives {len(names)} class(es) ({', '.join(names)}); nothing to learn"
            raise DataConfigError("label_column", self.labels.label_column, fix)
        return names

    def _read(self, split: str) -> list[Example] | None:
        key, path = self.splits.files(self.source)[split]
        if path is not None:
            return self._label(self._labelled_documents(key, path))
        if self._is_hiv1:
            return [Example(*genome) for genome in self.hiv1.labelled()] if split == "train" else None
        documents = read_split(self.source, self.splits, split, self.vocabulary)
        return None if documents is None else self._label(documents)

    def _labelled_documents(self, key: str, path: str) -> list[Document]:
        files = list_files(key, path, self.source.format)
        if any(kind in ("text", "lines") for _, kind in files):
            raise DataConfigError(key, path, "a text file has no labels; give CSV, TSV, JSONL, Parquet, or FASTA")
        documents = read_documents(key, path, self.vocabulary, Columns.of(self.source), self.source.format)
        fasta = {kind for _, kind in files} == {"fasta"}
        if self.labels.labels_path is None:
            if fasta:
                fix = f"{path} is FASTA, which has no labels; name a CSV of {self.source.id_column or 'id'} and label"
                raise DataConfigError("labels_path", None, fix)
            return documents
        if not fasta:
            raise DataConfigError("labels_path", self.labels.labels_path, f"only for FASTA; {path} has columns of its own")
        return self._join(documents, self.labels.labels_path)

    def _join(self, documents: list[Document], labels_path: str) -> list[Document]:
        """FASTA records with their rows of the table of labels, by name; each must have the other.

        Raises:
            DataFileError: a record without a row, a row without a record, or two rows of one record.
        """
        id_column = self.source.id_column or "id"
        rows: dict[str, Row] = {}
        for file, kind in list_files("labels_path", labels_path):
            for row in read_rows(file, kind):
                name = str(row.get(id_column, "id_column"))
                if name in rows:
                    raise DataFileError(row.path, row.line, f"{name!r} has a label on line {rows[name].line} already")
                rows[name] = row
        joined = []
        for document in documents:
            name = str(document.row.values["id"])
            if name not in rows:
                where = document.row
                raise DataFileError(where.path, where.line, f"record {name!r} has no row in {labels_path}")
            joined.append(Document(document.name, document.tokens, rows[name]))
        known = {str(document.row.values["id"]) for document in documents}
        for name, row in rows.items():
            # with files of their own for validation and test, one table may label all of them
            if name not in known and not (self.splits.validation_path or self.splits.test_path):
                raise DataFileError(row.path, row.line, f"{name!r} is no record of the FASTA that data.path names")
        return joined

    def _label(self, documents: list[Document]) -> list[Example]:
        return each(documents, self._example)

    def _example(self, document: Document) -> Example:
        if self.splits.group_column is None:
            group: str | bytes = hashlib.sha256(document.tokens.tobytes()).digest()
        else:
            group = str(document.row.get(self.splits.group_column, "group_column"))
        return Example(document, self.labels.rule.read(document.row), group)

    def class_counts(self) -> tuple[np.ndarray, int | None]:
        """Training sequences of each class, [K]; with several labels a sequence also how many sequences there are."""
        self.setup()
        targets = self._targets["train"]
        if self.multi_label:
            return targets.sum(0).astype(np.int64), len(targets)
        return np.bincount(targets, minlength=len(self.class_names or [])), None

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of constant answers on a split: see `class_baselines` and `label_baselines`."""
        examples = self.split(split)
        assert isinstance(examples, ExampleDataset)
        learned, data = self._targets["train"], examples.targets
        assert data is not None
        if self.multi_label:
            return label_baselines(learned, data)
        size = self.num_classes or 0
        return class_baselines(np.bincount(learned, minlength=size), np.bincount(data, minlength=size))

    def describe(self) -> dict[str, Any]:
        """Source, classes, and of each split the sequences, how many are cut at `max_length`, and class counts."""
        told: dict[str, Any] = {
            "source": str(self.source),
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": "recombinant form" if self._is_hiv1 else self.splits.group_column or "sequence",
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, ExampleDataset)
            targets = self._targets[split]
            size = self.num_classes or 0
            counts = targets.sum(axis=0) if self.multi_label else np.bincount(targets, minlength=size)
            told[split] = {
                "sequences": len(data),
                "cut": sum(len(document.tokens) > self.max_length for document in data.documents),
                "classes": dict(zip(self.class_names or (), counts.astype(int).tolist(), strict=True)),
            }
        return json.loads(json.dumps(told))
