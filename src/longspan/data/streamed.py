"""Language modelling and classification over data sets that stream in: files or the Hub through `datasets`, of any size.

Legend: B batch, T = `max_length`, K classes.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import class_baselines, label_baselines, language_baselines, token_baselines
from longspan.data.classification import ExampleDataset
from longspan.data.corpus import Corpus, PackedDataset, WindowDataset, cut_windows, pack_windows
from longspan.data.errors import DataFileError
from longspan.data.files import need_not_exist
from longspan.data.labels import ColumnsRule, LabelRule, Labels, indicator
from longspan.data.loader import rank_and_world
from longspan.data.readers import Row, is_blank
from longspan.data.sources import Columns, Document, retokenised, rows_to_documents, text_or_fix
from longspan.data.splits import SPLITS
from longspan.data.stream_loader import StreamLoader
from longspan.data.streams import HeldOut, InOrder, Items, Rows, Streamed, of_dataset, open_files, open_hub
from longspan.data.values import Loading, Source, Splits, gathered, source_of
from longspan.data.vocabularies import LookupVocabulary, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How a stream is read.

    `shuffle_rows`: rows that are read, shuffled and packed together, on each worker of each device. `epoch_windows`: sequences
    in what is called an epoch. `sample_rows`: training rows that are looked at before training: classes, a trained vocabulary
    and baselines come from them.
    """

    shuffle_rows: int = 1024
    epoch_windows: int = 4096
    sample_rows: int = 1024

    def __post_init__(self) -> None:
        for key in ("shuffle_rows", "epoch_windows", "sample_rows"):
            settings.whole(key, getattr(self, key), 1)


class StreamedDataModule(SequenceDataModule):
    """Base: where rows come from, which are held out, and the loaders; a subclass makes items of rows.

    Where from: `path` (files of one format: JSONL, Parquet, "lines" or texts, compressed or not), `name` (a Hugging Face data
    set), or `dataset`, a `datasets.IterableDataset` or `Dataset`, or a dict of such by split.

    What is held out: rows of `validation_path`, `test_path` (`validation_split`, `test_split` of the Hub, or of the dict)
    where given. Else a share of the rows: each by a hash of its text, so that equal texts are in one split. Held-out rows are
    read from the stream's beginning until there are as many as `max_validation_windows` and `max_test_windows` ask for; they
    alone are kept in memory, with the `sample_rows`.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    source: Source
    splits: Splits

    def __init__(
        self,
        source: Source | str | None,
        splits: Splits | None,
        loading: Loading | None,
        dataset: Any,
        others: Sequence[Any],
        keys: dict[str, Any],
    ):
        few = Splits(validation_fraction=0.01, test_fraction=0.01)
        some = Loading(max_length=1024, max_validation_windows=128, max_test_windows=512)
        given = source_of(source, Source()), splits or few, loading or some, Streaming(), *others
        self.source, self.splits, loading, self.streaming, *self.others = gathered(self, keys, *given)
        self.dataset = dataset
        super().__init__(self.source.vocabulary, loading, self.source.vocabulary_cache)
        if (dataset is not None) + (self.source.path is not None) + (self.source.name is not None) != 1:
            fix = "name your files, or a Hugging Face data set by data.name; or hand over a dataset: one of them"
            raise wrong_value("data.path", self.source.path, fix)
        if self.limits["train"] is not None:
            raise wrong_value("data.max_train_windows", self.limits["train"], "a stream has no end; set data.epoch_windows")
        for split in SPLITS[1:]:
            if self.limits[split] is None:
                fix = "give a number: held-out sequences of a stream are kept in memory"
                raise wrong_value(f"data.max_{split}_windows", None, fix)
        self.rows = {split: None if need_not_exist() else self._open(split) for split in SPLITS}

    def _open(self, split: str) -> Rows | None:
        """The rows that are named for a split; None where they are held out of the training rows."""
        key, path = self.splits.files(self.source)[split]
        if self.dataset is not None:
            parts = self.dataset if isinstance(self.dataset, Mapping) else {"train": self.dataset}
            return of_dataset(parts[split], f"dataset ({split})") if split in parts else None
        if path is not None:
            return open_files(key, path, self.source.format)
        own = self.splits.hub(split)
        return open_hub(self.source.name, self.source.subset, own) if self.source.name and own else None

    @abstractmethod
    def _make(self, documents: list[Document]) -> Any:
        """The items of documents, a data set."""

    def _size(self, document: Document) -> float:
        """The sequences that a document fills."""
        return 1

    def _learn(self, kept: dict[str, list[Row]]) -> None:
        """Takes what must be known before training from the rows that are looked at."""

    def _documents(self, rows: list[Row], vocabulary: Vocabulary) -> list[Document]:
        columns = Columns(self.source.text_column, self.source.id_column, dropped=self.dropped)
        documents = rows_to_documents(rows, self.reading, columns)
        if columns.name is None:
            one = len(self.rows["train"] or ()) <= 1
            names = [f"{row.line - 1}" if one else f"{row.path}:{row.line - 1}" for row in rows]
            documents = [replace(document, name=name) for document, name in zip(documents, names, strict=True)]
        return retokenised(documents, self.reading, vocabulary)

    def _items(self, rows: list[Row]) -> Items:
        return self._make(self._documents(rows, self.vocabulary))

    def _full(self, row: Row) -> bool:
        """Whether a row has a text, where such without are left out."""
        return self.source.on_empty == "error" or not is_blank(row.values.get(self.source.text_column, 0))

    @property
    def _held_out(self) -> HeldOut:
        shares = self.splits.shares(self.rows)
        return HeldOut(shares["validation"], shares["test"])

    def _split_of(self, row: Row) -> str:
        return self._held_out.split(text_or_fix(partial(row.text, self.source.text_column)).encode())

    def _trains(self, row: Row) -> bool:
        return self._full(row) and self._split_of(row) == "train"

    def _load(self) -> dict[str, Dataset]:
        train = self.rows["train"]
        assert train is not None
        stream = self._all_rows(train)
        kept: dict[str, list[Row]] = {split: [] for split in SPLITS}
        for row in stream:
            kept[self._split_of(row)].append(row)
            if len(kept["train"]) >= self.streaming.sample_rows:
                break
        self._train_vocabulary(self._documents(kept["train"], self.reading))
        for split in SPLITS[1:]:
            own = self.rows[split]
            if own is not None:
                self._fill(kept, (split,), ((split, row) for row in self._all_rows(own)))
        shared = tuple(split for split in SPLITS[1:] if self.rows[split] is None)
        self._fill(kept, shared, ((self._split_of(row), row) for row in stream))
        self._learn(kept)
        sets = {split: self._make(self._documents(rows, self.vocabulary)) for split, rows in kept.items()}
        return {split: data if split == "train" else data.keep(self.limits[split]) for split, data in sets.items()}

    def _all_rows(self, rows: Rows, what: str = "rows without text among those looked at before training") -> Iterator[Row]:
        """The rows of all shards in order; the count of those without text, told as `what`, is reported when reading ends."""
        left_out, first = 0, ""
        try:
            for shard in range(len(rows)):
                for row in rows.read(shard):
                    if self._full(row):
                        yield row
                    else:
                        left_out, first = left_out + 1, first or f"{row.path}, row {row.line}"
        finally:
            self.dropped.add(what, left_out, first)

    def _fill(self, kept: dict[str, list[Row]], splits: Sequence[str], rows: Iterator[tuple[str, Row]]) -> None:
        """Adds rows to held-out splits until each fills as many sequences as it may have, or there are no more."""
        left = {split: float(self.limits[split] or 0) for split in splits}
        for split in splits:
            left[split] -= sum(map(self._size, self._documents(kept[split], self.vocabulary)))
        if not any(size > 0 for size in left.values()):
            return
        for split, row in rows:
            if left.get(split, 0) > 0:
                kept[split].append(row)
                left[split] -= self._size(self._documents([row], self.vocabulary)[0])
                if not any(size > 0 for size in left.values()):
                    return

    def train_dataloader(self) -> StreamLoader:  # type: ignore[override]
        """Batches of the stream; resumable anywhere."""
        self.setup()
        rank, world = rank_and_world()
        train = self.rows["train"]
        assert train is not None
        data = Streamed(
            train, self._trains, self._items, block=self.streaming.shuffle_rows, seed=self.seed, rank=rank, world=world
        )
        batches = max(1, self.streaming.epoch_windows // (self.batch_size * world))
        options = self._options()
        loader = StreamLoader(data, options.pop("collate_fn"), batches=batches, **options)
        if self.trainer is not None:
            trainer = self.trainer
            loader.batches_an_epoch = lambda: trainer.num_training_batches
        return loader

    def _load_predict(self) -> Dataset:
        if self.source.path is None:
            raise wrong_value("data.path", None, "prediction reads your own files; set data.path")
        rows = self.rows["train"]
        assert rows is not None
        return InOrder(partial(self._all_rows, rows, "rows without text"), self._given_items)

    def _given_items(self, rows: list[Row]) -> Items:
        return self._given_set(self._documents(rows, self.vocabulary))  # type: ignore[return-value]

    def describe(self) -> dict[str, Any]:
        """Source, vocabulary, how the stream is read, and of each held-out split its sequences."""
        self.setup()
        record: dict[str, Any] = {
            "source": str(self.source) if self.dataset is None else type(self.dataset).__name__,
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": "a hash of the text",
            "shards": len(self.rows["train"] or ()),
            "shuffle_rows": self.streaming.shuffle_rows,
            "train": {"windows": self.streaming.epoch_windows, "streamed": True},
        }
        for split in SPLITS[1:]:
            record[split] = {"windows": len(self.split(split))}  # type: ignore[arg-type]
        if self.dropped.counts:
            record["left_out"] = dict(self.dropped.counts)
        return json.loads(json.dumps(record))


class StreamedTextDataModule(StreamedDataModule):
    """Language modelling over a stream: {"tokens": [B, T], "segments": [B, T] where short documents share a row}.

    Windows are those of `TextDataModule` with `pack`, of `shuffle_rows` documents at a time. See `StreamedDataModule`.
    """

    tasks: ClassVar[tuple[str, ...]] = ("language_modelling", "masked_modelling")
    lengths: ClassVar[str] = "if_short"

    def __init__(
        self,
        source: Source | str | None = None,
        splits: Splits | None = None,
        loading: Loading | None = None,
        *,
        dataset: Any = None,
        **keys: Any,
    ):
        super().__init__(source, splits, loading, dataset, (), keys)

    def _corpus(self, documents: list[Document]) -> Corpus:
        spans: list[Any] = [document.spans for document in documents]
        return Corpus.build(
            [document.tokens for document in documents],
            [document.name for document in documents],
            self.vocabulary,
            first=self.vocabulary.bos_id,
            spans=None if not spans or spans[0] is None else spans,
        )

    def _make(self, documents: list[Document]) -> PackedDataset:
        data = self._given_set(documents)
        return PackedDataset(data.corpus, data.windows, pack_windows(data.windows[:, 2], self.max_length))

    def _given_set(self, documents: list[Document]) -> WindowDataset:
        corpus = self._corpus(documents)
        regions = [(d, 0, corpus.size(d)) for d in range(len(corpus)) if corpus.size(d) > 1]
        return WindowDataset(corpus, cut_windows(regions, self.max_length, self.max_length - 1))

    def _size(self, document: Document) -> float:
        return len(document.tokens) / (self.max_length - 1)

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of the counts of the training rows that were looked at, as `TextDataModule.baselines`."""
        train, data = self.split("train"), self.split(split)
        assert isinstance(train, WindowDataset) and isinstance(data, WindowDataset)
        if isinstance(self.vocabulary, LookupVocabulary):
            return language_baselines(train, data, self.vocab_size, len(self.vocabulary.symbols))
        return token_baselines(train, data, self.vocab_size)


class StreamedClassificationDataModule(StreamedDataModule):
    """Classification over a stream: {"tokens": [B, T], "lengths": [B], "labels": [B], or [B, K] with `multi_label`}.

    Labels are read as `Labels` says, of a column or of several. The classes are `class_names`, or else those of the rows that
    are looked at before training; a row with another one ends the run by name. See `StreamedDataModule`.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sequence_classification",)

    def __init__(
        self,
        source: Source | str | None = None,
        splits: Splits | None = None,
        loading: Loading | None = None,
        labels: Labels | None = None,
        *,
        dataset: Any = None,
        **keys: Any,
    ):
        super().__init__(source, splits, loading, dataset, (labels or Labels(),), keys)
        self.labels: Labels = self.others[0]
        self.multi_label = self.labels.multi_label
        self._rule: LabelRule | ColumnsRule = self.labels.rule([])
        if self.labels.class_names is not None:
            self._set_classes(list(self.labels.class_names))

    def _set_classes(self, names: list[str]) -> None:
        self.class_names, self.num_classes = names, len(names)

    def _learn(self, kept: dict[str, list[Row]]) -> None:
        # held-out rows of the stream itself are of its classes; those of other files must be
        rows = [row for split, part in kept.items() if split == "train" or self.rows[split] is None for row in part]
        self._rule = self.labels.rule(rows)
        if self.class_names is None:
            found = {name for row in rows for name in self._rule.read(row)}
            self._set_classes(self.labels.sorted(found, rows))
        if (self.num_classes or 0) < (1 if self.multi_label else 2):
            given = self.labels.class_names
            fix = "a classification needs two classes at least; list all of them"
            if given is None:
                names = ", ".join(self.class_names or ())
                fix = f"the first rows have {names or 'no class'} alone; list all classes"
            raise wrong_value("data.class_names", given, fix)

    def _targets(self, rows: Sequence[Row]) -> np.ndarray:
        """Class numbers [N], or [N, K] of 0 and 1."""
        labels = [self._rule.read(row) for row in rows]
        known = set(self.class_names or ())
        for row, names in zip(rows, labels, strict=True):
            for name in names:
                if name not in known:
                    fix = f"label {name!r} is not in data.class_names"
                    if self.labels.class_names is None:
                        fix = f"label {name!r} is not among those of the rows before training; list all by data.class_names"
                    raise DataFileError(row.path, row.line, fix)
        targets = indicator(labels, self.class_names or [])
        return targets if self.multi_label else targets.argmax(axis=1)

    def _make(self, documents: list[Document]) -> ExampleDataset:
        return ExampleDataset(documents, self._targets([document.row for document in documents]), self.max_length)

    def _given_set(self, documents: list[Document]) -> ExampleDataset:
        return ExampleDataset(documents, None, self.max_length)

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of constant answers, the commonest of the training rows that were looked at."""
        train, data = self.split("train"), self.split(split)
        assert isinstance(train, ExampleDataset) and isinstance(data, ExampleDataset)
        assert train.targets is not None and data.targets is not None
        if self.multi_label:
            return label_baselines(train.targets, data.targets)
        size = self.num_classes or 0
        return class_baselines(np.bincount(train.targets, minlength=size), np.bincount(data.targets, minlength=size))
