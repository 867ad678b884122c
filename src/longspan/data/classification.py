"""Classification of whole sequences: texts and genomes, one label or several.

Legend: B batch, T = `max_length`, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import class_baselines, label_baselines
from longspan.data.dropped import in_training
from longspan.data.errors import DataFileError, each
from longspan.data.files import list_files
from longspan.data.hiv1 import Hiv1
from longspan.data.labels import ColumnsRule, LabelRule, Labels, indicator
from longspan.data.places import labels_of_places
from longspan.data.readers import Row, is_blank
from longspan.data.sources import Columns, Document, read_documents, read_given, read_rows, read_split, retokenised
from longspan.data.splits import SPLITS, by_groups, joined_groups
from longspan.data.values import Loading, Source, Splits, check_files, gathered, source_of

# formats without columns, whose labels come from a table of their own or from the place of a file
WITHOUT_COLUMNS = {"fasta", "genbank", "text", "lines"}
DROP = "data.on_missing=drop leaves such out, and counts them"


@dataclass(frozen=True, slots=True)
class Example:
    """A document with its class names, and the group that must not be parted by a split."""

    document: Document
    labels: tuple[Any, ...]
    group: str | bytes

    @property
    def content(self) -> bytes:
        """What equal texts share."""
        return self.document.tokens.tobytes()


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

    @property
    def cut_count(self) -> int:
        """How many are longer than what is read of them."""
        return sum(len(document.tokens) > self.max_length for document in self.documents)

    def keep(self, limit: int | None) -> ExampleDataset:
        """At most `limit` items, evenly spaced over all of them; the same ones in every run."""
        if limit is None or len(self.documents) <= limit:
            return self
        chosen = np.linspace(0, len(self.documents) - 1, limit).round().astype(int)
        targets = None if self.targets is None else self.targets[chosen]
        return ExampleDataset([self.documents[number] for number in chosen], targets, self.max_length)


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
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
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
        super().__init__(self.source.vocabulary, loading, self.source.vocabulary_cache)
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
        if self.labels.class_names is None and not self._is_hiv1:
            self._check_learned(pool, [example for split in SPLITS[1:] for example in given[split] or ()])
        assert self.class_names is not None
        shares = self.splits.shares(given)
        groups, wanted = [example.group for example in pool], 1 + sum(share > 0 for share in shares.values())
        if self.splits.group_column is not None:
            groups = joined_groups(groups, (example.content for example in pool), wanted)
        settings.enough_groups(
            self.source.key,
            self.source.named,
            groups,
            wanted,
            self.splits.group_column or "text",
            [example.document.name for example in pool],
        )
        chosen = by_groups(groups, self._spread(pool), seed=self.seed, **shares)
        parts: dict[str, list[Example]] = {}
        for split in SPLITS:
            examples = given[split] if split != "train" else None
            parts[split] = examples or [pool[index] for index in chosen[split]]
        texts = {split: (example.content for example in parts[split]) for split in SPLITS}
        self.in_training = in_training(texts, "sequences")
        self._train_vocabulary([example.document for example in parts["train"]])
        return {split: self._dataset(split, parts[split]) for split in SPLITS}

    def _load_predict(self) -> Dataset:
        documents = read_given(self.source, self.reading, self.dropped)
        return self._given_set(retokenised(documents, self.reading, self.vocabulary))

    def _given_set(self, documents: list[Document]) -> Dataset:
        return ExampleDataset(documents, None, self.max_length)

    def _dataset(self, split: str, examples: list[Example]) -> ExampleDataset:
        limit = self.limits[split]
        if limit is not None and len(examples) > limit:
            examples = [examples[i] for i in np.linspace(0, len(examples) - 1, limit).round().astype(int)]
        targets = self._targets_of(examples)
        self._targets[split] = targets
        documents = retokenised([example.document for example in examples], self.reading, self.vocabulary)
        return ExampleDataset(documents, targets, self.max_length)

    def _spread(self, examples: Sequence[Example]) -> np.ndarray:
        """[N, K], what is to be in every split in equal shares."""
        return indicator([example.labels for example in examples], self.class_names or [])

    def _targets_of(self, examples: Sequence[Example]) -> np.ndarray:
        """The targets: class numbers [N], or [N, K] of 0 and 1."""
        targets = indicator([example.labels for example in examples], self.class_names or [])
        return targets if self.multi_label else targets.argmax(axis=1)

    def _classes(self, examples: list[Example]) -> list[str]:
        """The class names, and a check that each label is one of them.

        Raises:
            DataFileError: a label is not in `class_names`.
            ConfigError: fewer than two classes (one, with several labels a sequence).
        """
        if self.labels.class_names is not None:
            known = set(self.labels.class_names)
            for example in examples:
                if not self._is_hiv1 and (strange := [name for name in example.labels if name not in known]):
                    row = example.document.row
                    names = ", ".join(self.labels.class_names[:8]) + ", ..." * (len(self.labels.class_names) > 8)
                    fix = f"correct it, or list it there beside {names} (a trained model has those of its training alone)"
                    raise DataFileError(row.path, row.line, f"label {strange[0]!r} is not in data.class_names; {fix}")
            return list(self.labels.class_names)
        if self._is_hiv1:
            return self.hiv1.classes([(example.labels, example.group) for example in examples])
        found = {name for example in examples for name in example.labels}
        names = self.labels.sorted(found, (example.document.row for example in examples))
        if len(names) < (1 if self.multi_label else 2):
            fix = f"gives {'one class, ' + names[0] if names else 'no class'}; nothing to learn"
            raise wrong_value("data.label_column", self.labels.label_column, fix)
        return names

    @staticmethod
    def _check_learned(pool: Sequence[Example], others: Sequence[Example]) -> None:
        """Raises DataFileError where rows of validation or test have a label that no training row has."""
        known = {name for example in pool for name in example.labels}

        def check(example: Example) -> None:
            for name in example.labels:
                if name not in known:
                    row, fix = example.document.row, "list the classes by data.class_names to keep it"
                    raise DataFileError(row.path, row.line, f"label {name!r} is on no training row; {fix}")

        each(others, check)

    def _read(self, split: str) -> list[Example] | None:
        key, path = self.splits.files(self.source)[split]
        if path is not None:
            return self._label(self._labelled_documents(key, path))
        if self._is_hiv1:
            return [Example(*genome) for genome in self.hiv1.labelled()] if split == "train" else None
        documents = read_split(self.source, self.splits, split, self.reading, self.dropped)
        return None if documents is None else self._label(documents)

    def _labelled_documents(self, key: str, path: str) -> list[Document]:
        files = list_files(key, path, self.source.format)
        kinds = {kind for _, kind in files}
        documents = self._documents(key, path)
        columns_hold_them = key != "path" and not kinds & WITHOUT_COLUMNS  # held-out tables beside a FASTA for training
        if self.labels.labels_path is not None and not columns_hold_them:
            if not kinds <= WITHOUT_COLUMNS:
                fix = f"only for FASTA and texts; {path} has columns of its own"
                raise wrong_value("data.labels_path", self.labels.labels_path, fix)
            return self._join(documents, self.labels.labels_path)
        if not kinds <= WITHOUT_COLUMNS or self.labels.label_from == "column":
            return documents
        label_of = labels_of_places(key, path, files, self.labels.label_from)

        def labelled(document: Document) -> Document:
            row = document.row
            values = {**row.values, self.labels.label_column: label_of(Path(row.path))}
            return Document(document.name, document.tokens, Row(row.path, row.line, values))

        return [labelled(document) for document in documents]

    def _documents(self, key: str, path: str) -> list[Document]:
        return read_documents(key, path, self.reading, self._columns, self.source.format)

    @property
    def _columns(self) -> Columns:
        return Columns.of(self.source, self.dropped)

    def _join(self, documents: list[Document], labels_path: str) -> list[Document]:
        """Records with their rows of the table of labels, by the first word of their names; each must have the other, or with
        `on_missing` "drop" is left out without.

        Raises:
            DataFileError: a record without a row, a row without a record, or two rows of one record.
        """
        rows = self._label_rows(labels_path)
        names = [_first_word(document.row.values.get("id", document.name)) for document in documents]
        drop = self.labels.on_missing == "drop"
        unlabelled = [document for name, document in zip(names, documents, strict=True) if name not in rows]
        if unlabelled and not drop:
            row, more = unlabelled[0].row, f" (and {len(unlabelled) - 1} more such records)" if len(unlabelled) > 1 else ""
            name = str(row.values.get("id", unlabelled[0].name))
            tables = "data.labels_path may be a folder or a glob of several tables"
            raise DataFileError(row.path, row.line, f"record {name!r} has no row in {labels_path}{more}; {tables}; {DROP}")
        # with files of their own for validation and test, one table may label all of them
        shared = self.splits.validation_path or self.splits.test_path
        known = set(names)
        unknown = [] if shared else [row for name, row in rows.items() if name not in known]
        if unknown and not drop:
            more = f" (and {len(unknown) - 1} more such rows)" if len(unknown) > 1 else ""
            said = f"{self._id_of(unknown[0])!r} is no record of the FASTA that data.path names{more}; {DROP}"
            raise DataFileError(unknown[0].path, unknown[0].line, said)
        for what, left in (("records without a label", [d.row for d in unlabelled]), ("labels without a record", unknown)):
            self.dropped.add(what, len(left), f"{left[0].path}, line {left[0].line}" if left else "")
        joined = []
        for name, document in zip(names, documents, strict=True):
            if name in rows:
                own = rows[name]
                values = {**document.row.values, **own.values}
                joined.append(Document(document.name, document.tokens, Row(own.path, own.line, values)))
        return joined

    def _id_of(self, row: Row) -> str:
        return _first_word(row.get(self.source.id_column or ("id" if self.source.header else "1"), "id_column"))

    def _label_rows(self, labels_path: str) -> dict[str, Row]:
        """{first word of the id: row} of the table of labels; without a header its columns are the id and the label."""
        rows: dict[str, Row] = {}
        for file, kind in list_files("labels_path", labels_path):
            for row in read_rows(file, kind, self._columns):
                if not self.source.header and self.labels.label_column not in row.values and "2" in row.values:
                    row = Row(row.path, row.line, {**row.values, self.labels.label_column: row.values["2"]})
                name = self._id_of(row)
                if name in rows:
                    raise DataFileError(row.path, row.line, f"{name!r} has a label on line {rows[name].line} already")
                rows[name] = row
        return rows

    def _label(self, documents: list[Document]) -> list[Example]:
        rule = self.labels.rule([document.row for document in documents])
        return each(documents, lambda document: self._example(document, rule))

    def _example(self, document: Document, rule: LabelRule | ColumnsRule) -> Example:
        return Example(document, rule.read(document.row), self._group(document))

    def _group(self, document: Document) -> str | bytes:
        """The groups that no split may part: equal sequences, or those of one `group_column`."""
        if self.splits.group_column is None:
            return hashlib.sha256(document.tokens.tobytes()).digest()
        group, row = document.row.get(self.splits.group_column, "group_column"), document.row
        if is_blank(group):
            reason = f"column {self.splits.group_column!r} names no group; give each row its own"
            raise DataFileError(row.path, row.line, reason)
        return str(group)

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
        record: dict[str, Any] = {
            "source": str(self.source),
            "vocabulary": self._vocabulary.name,
            "max_length": self.max_length,
            "split": "recombinant form" if self._is_hiv1 else self.splits.group_column or "sequence",
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, ExampleDataset)
            targets = self._targets[split]
            size = self.num_classes or 0
            counts = targets.sum(axis=0) if self.multi_label else np.bincount(targets, minlength=size)
            record[split] = {
                "sequences": len(data),
                "cut": data.cut_count,
                "classes": dict(zip(self.class_names or (), counts.astype(int).tolist(), strict=True)),
            }
            if split in self.in_training:
                record[split]["in_training"] = self.in_training[split]
        if self.dropped.counts:
            record["left_out"] = dict(self.dropped.counts)
        return json.loads(json.dumps(record))


def _first_word(name: object) -> str:
    return (str(name).split() or [""])[0]
