"""Classification of whole sequences: texts and genomes, one label or several.

Legend: B batch, T = `max_length`, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import class_baselines, label_baselines
from longspan.data.errors import DataConfigError, DataFileError, each
from longspan.data.files import FORMATS, list_files
from longspan.data.hiv1 import COMPLEX, form_number, forms_by_number, parents
from longspan.data.labels import LabelRule, indicator, sort_classes
from longspan.data.readers import Row, read_csv, read_hub
from longspan.data.sources import Columns, Document, read_documents, read_rows, rows_to_documents
from longspan.data.splits import SPLITS, by_groups


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

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        bundled: str | None = "hiv1",
        *,
        batch_size: int = 8,
        max_length: int = 4096,
        seed: int = 0,
        vocabulary: str = "nucleotides",
        format: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        id_column: str | None = None,
        group_column: str | None = None,
        labels_path: str | None = None,
        multi_label: bool = False,
        label_separator: str = "|",
        class_names: Sequence[str] | None = None,
        min_groups: int = 4,
        subset: str | None = None,
        train_split: str = "train",
        validation_split: str | None = None,
        test_split: str | None = None,
        validation_path: str | None = None,
        test_path: str | None = None,
        validation_fraction: float = 0.15,
        test_fraction: float = 0.15,
        max_train_windows: int | None = None,
        max_validation_windows: int | None = None,
        max_test_windows: int | None = None,
        pad_to_multiple: int | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
    ):
        super().__init__(
            vocabulary=vocabulary,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            num_workers=num_workers,
            drop_last=drop_last,
            max_train_windows=max_train_windows,
            max_validation_windows=max_validation_windows,
            max_test_windows=max_test_windows,
            pad_to_multiple=pad_to_multiple,
        )
        self.path = settings.text_or_none("path", path)
        self.name = settings.text_or_none("name", name)
        if self.path and self.name:
            raise DataConfigError("name", name, f"data.path={path!r} is set too; set one of them to null")
        self.bundled = bundled
        if not self.path and not self.name:
            settings.bundled(bundled, ("hiv1",))
            if vocabulary != "nucleotides":
                raise DataConfigError("vocabulary", vocabulary, "the bundled hiv1 needs nucleotides")
        self.format = None if format is None else settings.choice("format", format, FORMATS)
        self.columns = Columns(settings.text("text_column", text_column), settings.text_or_none("id_column", id_column))
        self.group_column = settings.text_or_none("group_column", group_column)
        if not isinstance(multi_label, bool):
            raise DataConfigError("multi_label", multi_label, "give true or false")
        self.multi_label = multi_label or self._is_hiv1
        self.rule = LabelRule(
            settings.text("label_column", label_column),
            self.multi_label,
            settings.text("label_separator", label_separator),
        )
        self.fixed_classes = None if class_names is None else [str(name) for name in class_names]
        if self.fixed_classes is not None and len(set(self.fixed_classes)) != len(self.fixed_classes):
            raise DataConfigError("class_names", list(class_names or ()), "a name is there twice")
        self.min_groups = settings.whole("min_groups", min_groups, 1)
        self.subset = settings.text_or_none("subset", subset)
        self.hub_splits = {
            "train": settings.text("train_split", train_split),
            "validation": settings.text_or_none("validation_split", validation_split),
            "test": settings.text_or_none("test_split", test_split),
        }
        self.paths = {"train": self.path, "validation": validation_path, "test": test_path}
        for split, file in self.paths.items():
            if file is not None:
                key = "path" if split == "train" else f"{split}_path"
                list_files(key, settings.text(key, file), self.format)
        self.labels_path = settings.text_or_none("labels_path", labels_path)
        if self.labels_path is not None:
            list_files("labels_path", self.labels_path)
        self.validation_fraction = settings.share("validation_fraction", validation_fraction)
        self.test_fraction = settings.share("test_fraction", test_fraction)
        self._targets: dict[str, np.ndarray] = {}
        if self.fixed_classes is not None:
            self._set_classes(self.fixed_classes)

    @property
    def _is_hiv1(self) -> bool:
        return not self.path and not self.name and self.bundled == "hiv1"

    def _set_classes(self, names: list[str]) -> None:
        self.class_names, self.num_classes = names, len(names)

    def _load(self) -> dict[str, Dataset]:
        given = {split: self._read(split) for split in SPLITS}
        pool = given["train"]
        assert pool is not None
        everything = [example for examples in given.values() for example in examples or ()]
        self._set_classes(self._classes(everything))
        assert self.class_names is not None
        shares = {
            split: 0.0 if given[split] is not None else share
            for split, share in (("validation", self.validation_fraction), ("test", self.test_fraction))
        }
        settings.enough_groups(
            "path" if self.path else "name" if self.name else "bundled", self.path or self.name or self.bundled,
            [example.group for example in pool], 1 + sum(share > 0 for share in shares.values()),
            self.group_column or "text",
        )  # fmt: skip
        spread = indicator([example.labels for example in pool], self.class_names)
        chosen = by_groups([example.group for example in pool], spread, seed=self.seed, **shares)
        sets: dict[str, Dataset] = {}
        for split in SPLITS:
            examples = given[split] if split != "train" else None
            sets[split] = self._dataset(split, examples or [pool[index] for index in chosen[split]])
        return sets

    def _load_predict(self) -> Dataset:
        if self.path is None:
            raise DataConfigError("path", None, "prediction reads your own files; set data.path")
        return self._given_set(read_documents("path", self.path, self.vocabulary, self.columns, self.format))

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
        if self.fixed_classes is not None:
            known = set(self.fixed_classes)
            for example in examples:
                if not self._is_hiv1 and (strange := [name for name in example.labels if name not in known]):
                    row = example.document.row
                    raise DataFileError(row.path, row.line, f"label {strange[0]!r} is not in data.class_names")
            return self.fixed_classes
        names = sort_classes(name for example in examples for name in example.labels)
        if self._is_hiv1:
            forms: dict[str, set] = {name: set() for name in names}
            for example in examples:
                for name in example.labels:
                    forms[name].add(example.group)
            names = [name for name in names if len(forms[name]) >= self.min_groups]
        if len(names) < (1 if self.multi_label else 2):
            key = "min_groups" if self._is_hiv1 else "label_column"
            value = self.min_groups if self._is_hiv1 else self.rule.column
            raise DataConfigError(key, value, f"gives {len(names)} class(es) ({', '.join(names)}); nothing to learn")
        return names

    def _read(self, split: str) -> list[Example] | None:
        path = self.paths[split]
        if path is not None:
            key = "path" if split == "train" else f"{split}_path"
            return self._label(self._labelled_documents(key, path))
        if self.name:
            hub_split = self.hub_splits[split]
            if hub_split is None:
                return None
            rows = read_hub(self.name, self.subset, hub_split)
            return self._label(rows_to_documents(rows, self.vocabulary, self.columns))
        return self._read_hiv1() if split == "train" else None

    def _labelled_documents(self, key: str, path: str) -> list[Document]:
        files = list_files(key, path, self.format)
        if any(kind in ("text", "lines") for _, kind in files):
            raise DataConfigError(key, path, "a text file has no labels; give CSV, TSV, JSONL, Parquet, or FASTA")
        documents = read_documents(key, path, self.vocabulary, self.columns, self.format)
        fasta = {kind for _, kind in files} == {"fasta"}
        if self.labels_path is None:
            if fasta:
                fix = f"{path} is FASTA, which has no labels; name a CSV of {self.columns.name or 'id'} and label"
                raise DataConfigError("labels_path", None, fix)
            return documents
        if not fasta:
            raise DataConfigError("labels_path", self.labels_path, f"only for FASTA; {path} has columns of its own")
        return self._join(documents, self.labels_path)

    def _join(self, documents: list[Document], labels_path: str) -> list[Document]:
        """FASTA records with their rows of the table of labels, by name; each must have the other.

        Raises:
            DataFileError: a record without a row, a row without a record, or two rows of one record.
        """
        id_column = self.columns.name or "id"
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
            if name not in known and not (self.paths["validation"] or self.paths["test"]):
                raise DataFileError(row.path, row.line, f"{name!r} is no record of the FASTA that data.path names")
        return joined

    def _label(self, documents: list[Document]) -> list[Example]:
        return each(documents, self._example)

    def _example(self, document: Document) -> Example:
        if self.group_column is None:
            group: str | bytes = hashlib.sha256(document.tokens.tobytes()).digest()
        else:
            group = str(document.row.get(self.group_column, "group_column"))
        return Example(document, self.rule.read(document.row), group)

    def _read_hiv1(self) -> list[Example]:
        rows = read_csv(shipped.HIV1, "\t")
        forms = forms_by_number(row.values["subtype"] for row in rows)
        kept = [row for row in rows if forms.get(form_number(row.values["subtype"]) or "", COMPLEX) != COMPLEX]
        documents = rows_to_documents(kept, self.vocabulary, Columns("sequence", "accession"))
        return [
            Example(document, tuple(sorted(parents(forms[str(number)], forms))), str(number))
            for document in documents
            if (number := form_number(document.row.values["subtype"]))
        ]

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
            "source": self.path or self.name or f"bundled {self.bundled}",
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": "recombinant form" if self._is_hiv1 else self.group_column or "sequence",
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
