"""The base class of data modules: sizes, loaders, limits, and the attributes that models and tasks read.

Legend: B sequences a device, T = `max_length`, W windows.
"""

from __future__ import annotations

import sys
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from longspan.config.errors import wrong_value
from longspan.data.augment import BothStrands, RoundsSampler
from longspan.data.batches import Collate
from longspan.data.dropped import Dropped
from longspan.data.genes import AnnotatedGenome
from longspan.data.loader import EvaluationSampler, EvenBatches, ItemLists, ResumableLoader, TrainSampler, rank_and_world
from longspan.data.sources import Document, given_documents
from longspan.data.splits import SPLITS
from longspan.data.values import Fractions, Loading, Origin
from longspan.data.vocabularies import BYTES, NUCLEOTIDES, KmerVocabulary, LookupVocabulary, Vocabulary
from longspan.data.vocabularies import vocabulary as vocabulary_named


class SequenceDataModule(pl.LightningDataModule):
    """Base of the data modules. Subclasses read data in `_load` and `_load_predict`.

    Attributes: `loading` says how sequences are dealt out; `source` and `splits`, where data is read and not made up,
    where it comes from and what is held out.
    """

    source: Origin | AnnotatedGenome | None = None
    splits: Fractions | None = None

    tasks: ClassVar[tuple[str, ...]] = ()
    # whether batches carry lengths always, or only where a row is short
    lengths: ClassVar[str] = "always"

    def __init__(self, vocabulary: str | Vocabulary, loading: Loading, vocabulary_cache: str | None = None):
        super().__init__()
        self._vocabulary = vocabulary_named(vocabulary) if isinstance(vocabulary, str) else vocabulary
        self.vocabulary_cache = None if vocabulary_cache is None else Path(vocabulary_cache)
        self.loading = loading
        self.batch_size, self.max_length, self.seed = loading.batch_size, loading.max_length, loading.seed
        self.num_workers, self.drop_last, self.pad_to_multiple = loading.num_workers, loading.drop_last, loading.pad_to_multiple
        self.limits = loading.limits
        if loading.reverse_complement and self.vocabulary.complement is None:
            fix = f"{self.vocabulary.name} have no other strand; set data.vocabulary=nucleotides, or false"
            raise wrong_value("data.reverse_complement", True, fix)
        self.dropped = Dropped()
        self.in_training: dict[str, int] = {}  # {split: how many of its texts are training texts too}
        self.num_classes: int | None = None
        self.class_names: list[str] | None = None
        self.multi_label = False
        self._sets: Mapping[str, Dataset] = {}
        self._predict_set: Dataset | None = None

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        """Takes from a checkpoint what its model reads, see `longspan.tasks.data_facts`; settings tell most data all of it."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Between text and tokens.

        Raises:
            ConfigError: it is trained on the training split, which is not read yet.
        """
        if not isinstance(self._vocabulary, Vocabulary):
            raise wrong_value("data.vocabulary", self._vocabulary.name, "is trained on the training split: call setup() first")
        return self._vocabulary

    @property
    def reading(self) -> LookupVocabulary:
        """What documents are read in, a byte a token: the vocabulary itself where it is of that kind.

        Splits are made of documents as they are read, and so are the same with any vocabulary.
        """
        known = self._vocabulary
        if isinstance(known, LookupVocabulary):
            return known
        return NUCLEOTIDES if isinstance(known, KmerVocabulary) else BYTES

    @property
    def token_unit(self) -> str | None:
        """The name of a token for tasks; None where it is a byte (a base)."""
        return None if self.reading is self._vocabulary else "token"

    def stored_vocabularies(self) -> dict[str, Any]:
        """Plain values of each vocabulary that its name does not bring back, by the config's key; checkpoints keep them."""
        states = {"vocabulary": self.vocabulary.state()}
        return {key: value for key, value in states.items() if value is not None}

    def _train_vocabulary(self, documents: Iterable[Document]) -> None:
        """Trains the vocabulary that is yet to be, on the documents of the training split as they were read."""
        if not isinstance(self._vocabulary, Vocabulary):
            texts = (self.reading.decode_bytes(document.tokens) for document in documents)
            self._vocabulary = self._vocabulary.trained(texts, self.vocabulary_cache)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, specials included."""
        return self.vocabulary.size

    @property
    def task(self) -> str:
        """The task that this data is for first of all; `tasks` are all that it can serve."""
        return self.tasks[0]

    @abstractmethod
    def _load(self) -> Mapping[str, Dataset]:
        """The data set of each of `SPLITS`."""

    @abstractmethod
    def _load_predict(self) -> Dataset:
        """The user's files, every window, no labels needed."""

    @abstractmethod
    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of a model that learned nothing on a split, by metric name."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain values for the run record: where the data is from, sizes, splits."""

    def setup(self, stage: str | None = None) -> None:
        """Reads the data, once, whatever the stage; "predict" reads only the files of `data.path`.

        Raises:
            DataFileError: a file is malformed.
            ConfigError: a setting does not fit the data.
        """
        if stage == "predict":
            if self._predict_set is None:
                self._predict_set = self._load_predict()
        elif not self._sets:
            sets = self._load()
            for name in SPLITS:
                if not len(sets[name]):  # type: ignore[arg-type]
                    self._refuse_empty(name)
            self._sets = sets

    def _refuse_empty(self, split: str) -> None:
        key: str = f"max_{split}_windows"
        value: object = self.limits[split]
        if self.splits is not None and split != "train":
            key, value = f"{split}_fraction", getattr(self.splits, f"{split}_fraction")
        elif self.source is not None:
            key, value = self.source.key, self.source.named
        raise wrong_value(f"data.{key}", value, f"leaves the {split} split empty; give more data or other shares")

    def split(self, name: str) -> Dataset:
        """The data set of a split ("val" is short for "validation"), read if it is not yet.

        Raises:
            ValueError: no such split.
        """
        name = "validation" if name == "val" else name
        if name not in SPLITS:
            raise ValueError(f"split={name!r}: take one of {', '.join(SPLITS)}")
        self.setup()
        return self._sets[name]

    def train_dataloader(self) -> ResumableLoader:
        """Batches of the training split in an order of (seed, epoch); resumable inside an epoch."""
        rank, world = rank_and_world()
        data = self.split("train")
        if self.loading.reverse_complement:
            assert self.vocabulary.complement is not None  # refused in __init__ else
            data = BothStrands(data, self.seed, self.vocabulary.complement, self.label_complement)
        loader = ResumableLoader(
            data,
            sampler=self._train_sampler(data, rank, world),
            drop_last=self.drop_last and len(data) >= self.batch_size * world,  # type: ignore[arg-type]
            **self._options(),
        )
        if self.trainer is not None:
            trainer = self.trainer
            loader.epoch = trainer.current_epoch  # not 0 where the trainer reloads its loaders
            loader.batches_an_epoch = lambda: trainer.num_training_batches
        return loader

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation split, in order."""
        return self._evaluation("validation")

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split, in order."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches over the files of `data.path`, in order, with "ids" and "starts" and no labels."""
        self.setup("predict")
        assert self._predict_set is not None
        if (said := self._said_of_cut(self._predict_set)) and rank_and_world()[0] == 0:
            print(f"data: {said}", file=sys.stderr)
        return DataLoader(self._predict_set, shuffle=False, **self._options(names=True))

    def given_dataloader(self, texts: Sequence[str | bytes], names: Sequence[str] | None = None) -> DataLoader:
        """Batches of texts from Python, cut and padded as those of `predict_dataloader`; needs no `setup` and no files.

        Raises:
            ConfigError: see `given_documents`; or this data is made up, and has no texts.
        """
        given = self._given_set(given_documents(texts, self.vocabulary, names))
        if said := self._said_of_cut(given):
            warnings.warn(said, stacklevel=2)
        return DataLoader(given, shuffle=False, **{**self._options(names=True), "num_workers": 0, "persistent_workers": False})

    def _said_of_cut(self, data: Dataset) -> str:
        """What is said of sequences that are longer than what is read of them; nothing where there are none."""
        cut = getattr(data, "cut_count", 0)
        if not cut:
            return ""
        of = f"{cut} of {len(data)} sequences {'is' if cut == 1 else 'are'}"  # type: ignore[arg-type]
        return f"{of} longer than data.max_length = {self.max_length} tokens; what is beyond is not read"

    def _given_set(self, documents: list[Document]) -> Dataset:
        raise wrong_value("sequences", None, f"{type(self).__name__} makes its own sequences; it reads no texts")

    def _train_sampler(self, data: Dataset, rank: int, world: int) -> TrainSampler:
        anew = isinstance(data, BothStrands) or getattr(data, "endless", False)
        return (RoundsSampler if anew else TrainSampler)(data, self.seed, rank, world)

    @property
    def label_complement(self) -> np.ndarray | None:
        """[K], what each label of a base is on the other strand; None where strands do not change labels."""
        return None

    def _evaluation(self, name: str) -> DataLoader:
        rank, world = rank_and_world()
        data = self.split(name)
        if world == 1:
            return DataLoader(data, sampler=EvaluationSampler(data, rank, world), **self._options())
        windows = len(data)  # type: ignore[arg-type]
        if windows < world:
            raise wrong_value(f"data.max_{name}_windows", windows, f"{world} devices need a window each; give more")
        sampler = EvenBatches(data, self.batch_size, rank, world)
        return DataLoader(ItemLists(data), sampler=sampler, **{**self._options(), "batch_size": None})

    def _options(self, names: bool = False) -> dict[str, Any]:
        collate = Collate(
            self.max_length,
            self.vocabulary.pad_id,
            lengths="always" if names else self.lengths,
            multiple=self.pad_to_multiple,
            names=names,
        )
        return {
            "batch_size": self.batch_size,
            "collate_fn": collate,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # a generator of its own: the loader else draws from torch's global one, and so moves dropout's numbers
            "generator": torch.Generator().manual_seed(self.seed),
        }
