"""Pairs of texts to learn one from the other: translations, summaries, anything in two columns or two files of lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.errors import DataFileError
from longspan.data.files import FORMATS, list_files
from longspan.data.pair_sets import PairCollate, PairDataset, TokenPair, pack_pairs
from longspan.data.pair_sources import (
    Pair,
    commonest,
    lead,
    pairs_of_hub,
    pairs_of_lines,
    pairs_of_tables,
    summaries_of_addresses,
)
from longspan.data.sources import Document
from longspan.data.splits import SPLITS, by_groups
from longspan.data.synthetic.pairs import GENERATED, made_pairs
from longspan.data.values import Loading, Shares
from longspan.data.vocabularies import BYTES, LookupVocabulary, OutsideVocabularyError, Vocabulary
from longspan.data.vocabularies import vocabulary as vocabulary_named

EVALUATION_TEXTS = ("bleu", "exact_match", "rouge1", "rouge2", "rougeL")


class PairedDataModule(SequenceDataModule):
    """Sources and targets for `task=sequence_to_sequence`; see `PairCollate` for the batches.

    Where from: `path`, tables with `source_column` and `target_column`; `path` and `target_path`, two files of which line n of
    one goes with line n of the other; `name`, a Hugging Face data set; `generated` "dates" or "numbers", of which `pairs` are
    made; or `bundled` "addresses": passages, and the first sentence of each.

    What is held out: `validation_path` and `test_path` (with `validation_target_path`, `test_target_path`), or the Hub's
    splits; otherwise shares of the pairs, of which equal sources stay together (of the addresses, whole ones).

    `vocabulary` is of both sides, unless `target_vocabulary` is another; "bpe:2000" is trained on the training split. Sources
    longer than `max_length` keep their head, and targets their first `max_target_length` - 1 tokens; `describe` counts them.
    With `pack` several short pairs share a row in training, and do not see each other.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sequence_to_sequence",)

    def __init__(
        self,
        path: str | None = None,
        target_path: str | None = None,
        name: str | None = None,
        bundled: str | None = None,
        generated: str | None = None,
        *,
        batch_size: int = 32,
        max_length: int = 128,
        max_target_length: int = 64,
        seed: int = 0,
        vocabulary: str | Vocabulary = "bytes",
        target_vocabulary: str | Vocabulary | None = None,
        vocabulary_cache: str | None = None,
        format: str | None = None,
        source_column: str = "source",
        target_column: str = "target",
        subset: str | None = None,
        train_split: str = "train",
        validation_split: str | None = None,
        test_split: str | None = None,
        validation_path: str | None = None,
        validation_target_path: str | None = None,
        test_path: str | None = None,
        test_target_path: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        pairs: int = 20_000,
        pack: bool = False,
        pad_to_multiple: int = 8,
        max_train_windows: int | None = None,
        max_validation_windows: int | None = None,
        max_test_windows: int | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
    ):
        loading = Loading(
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
        super().__init__(vocabulary, loading, vocabulary_cache)
        self.splits = Shares(validation_fraction=validation_fraction, test_fraction=test_fraction)
        named = target_vocabulary
        self._target_vocabulary: Any = vocabulary_named(named, "target_vocabulary") if isinstance(named, str) else named
        self.max_target_length = settings.whole("max_target_length", max_target_length, 2)
        self.path, self.name = settings.text_or_none("path", path), settings.text_or_none("name", name)
        self.bundled, self.generated = bundled, generated
        self._check_origin()
        self.paths = {"train": self.path, "validation": validation_path, "test": test_path}
        self.target_paths = {"train": target_path, "validation": validation_target_path, "test": test_target_path}
        self.format = None if format is None else settings.choice("format", format, FORMATS)
        self._check_files()
        self.source_column = settings.text("source_column", source_column)
        self.target_column = settings.text("target_column", target_column)
        self.subset = settings.text_or_none("subset", subset)
        self.hub_splits = {"train": train_split, "validation": validation_split, "test": test_split}
        self.validation_fraction, self.test_fraction = self.splits.validation_fraction, self.splits.test_fraction
        self.pairs = settings.whole("pairs", pairs, 10)
        if not isinstance(pack, bool):
            raise wrong_value("data.pack", pack, "give true or false")
        self.pack = pack

    def _check_origin(self) -> None:
        given = [key for key in ("path", "name", "generated", "bundled") if getattr(self, key)]
        if not given:
            fix = f"name your own files, a Hugging Face data set by data.name, or take data.generated={'|'.join(GENERATED)}"
            raise wrong_value("data.path", None, f"{fix} or data.bundled=addresses")
        # files of one's own to predict on go with data that is made or bundled
        if len(given) > 1 and {*given} & {"name"}:
            raise wrong_value(
                f"data.{given[1]}", getattr(self, given[1]), f"data.{given[0]} is given too; give null for one of them"
            )
        if self.generated is not None:
            settings.choice("generated", self.generated, GENERATED)
        if self.bundled is not None:
            settings.choice("bundled", self.bundled, ("addresses",))

    def _check_files(self) -> None:
        for split in SPLITS:
            prefix = "" if split == "train" else f"{split}_"
            source, target = self.paths[split], self.target_paths[split]
            for key, value in ((f"{prefix}path", source), (f"{prefix}target_path", target)):
                if value is not None:
                    list_files(key, settings.text(key, value), "lines" if target is not None else self.format)
            if target is not None and source is None:
                raise wrong_value(f"data.{prefix}target_path", target, f"goes with data.{prefix}path, which is null; give both")

    @property
    def target_vocabulary(self) -> Vocabulary:
        """Of the targets; that of the sources unless they have their own."""
        if self._target_vocabulary is None:
            return self.vocabulary
        if not isinstance(self._target_vocabulary, Vocabulary):
            name = self._target_vocabulary.name
            raise wrong_value("data.target_vocabulary", name, "is trained on the training split: call setup() first")
        return self._target_vocabulary

    def stored_vocabularies(self) -> dict[str, Any]:
        vocabularies = super().stored_vocabularies()
        own = None if self._target_vocabulary is None else self.target_vocabulary.state()
        return vocabularies if own is None else {**vocabularies, "target_vocabulary": own}

    def _load(self) -> dict[str, Dataset]:
        given = {split: self._read(split) for split in SPLITS}
        pool = given["train"]
        assert pool is not None
        parts = {split: pairs for split, pairs in given.items() if pairs is not None}
        shares = {
            split: 0.0 if split in parts else share
            for split, share in (("validation", self.validation_fraction), ("test", self.test_fraction))
        }
        origin = next(key for key in ("path", "name", "generated", "bundled") if getattr(self, key))
        groups = [pair.group for pair in pool]
        settings.enough_groups(origin, getattr(self, origin), groups, 1 + sum(share > 0 for share in shares.values()), "source")
        chosen = by_groups(groups, np.ones((len(pool), 1)), seed=self.seed, **shares)
        for split in SPLITS:
            if split == "train" or split not in parts:
                parts[split] = [pool[index] for index in chosen[split]]
        self._train_vocabularies(parts["train"])
        self._texts = parts
        return {split: self._dataset(split, parts[split]) for split in SPLITS}

    def _read(self, split: str) -> list[Pair] | None:
        path, target = self.paths[split], self.target_paths[split]
        key = "path" if split == "train" else f"{split}_path"
        if split == "train" and self.generated is not None:
            return made_pairs(self.generated, self.pairs, self.seed)
        if split == "train" and self.bundled is not None:
            return summaries_of_addresses(self.max_length, self.max_target_length)
        if path is not None and target is not None:
            return pairs_of_lines(path, target)
        if path is not None:
            return pairs_of_tables(key, path, self.format, self.source_column, self.target_column)
        hub = self.hub_splits[split] if self.name else None
        if hub is None:
            return None
        return pairs_of_hub(str(self.name), self.subset, hub, self.source_column, self.target_column)

    def _train_vocabularies(self, pairs: Sequence[Pair]) -> None:
        """Trains what is yet to be trained: of both sides where they share it."""
        sides = {"source": [pair.source.encode() for pair in pairs], "target": [pair.target.encode() for pair in pairs]}
        if not isinstance(self._vocabulary, Vocabulary):
            texts = sides["source"] + (sides["target"] if self._target_vocabulary is None else [])
            self._vocabulary = self._vocabulary.trained(texts, self.vocabulary_cache)
        if self._target_vocabulary is not None and not isinstance(self._target_vocabulary, Vocabulary):
            self._target_vocabulary = self._target_vocabulary.trained(sides["target"], self.vocabulary_cache)

    def _dataset(self, split: str, pairs: Sequence[Pair]) -> PairDataset:
        limit = self.limits[split]
        if limit is not None and len(pairs) > limit:
            pairs = [pairs[index] for index in np.linspace(0, len(pairs) - 1, limit).round().astype(int)]
            self._texts[split] = list(pairs)
        tokens = [self._tokens(pair) for pair in pairs]
        if self.pack and split == "train":
            return PairDataset(pack_pairs(tokens, self.max_length, self.max_target_length))
        return PairDataset([[pair] for pair in tokens])

    def _tokens(self, pair: Pair) -> TokenPair:
        try:
            source = self.vocabulary.encode_bytes(pair.source.encode())
            target = self.target_vocabulary.encode_bytes(pair.target.encode())
        except OutsideVocabularyError as error:
            raise DataFileError(pair.row.path, pair.row.line, str(error).removeprefix("text: ")) from None
        if not len(source):
            raise DataFileError(
                pair.row.path, pair.row.line, f"the {self.vocabulary.name} vocabulary makes no token of its source"
            )
        cut = len(source) > self.max_length or len(target) >= self.max_target_length
        return TokenPair(source[: self.max_length], target[: self.max_target_length - 1], pair.name, pair.target, cut)

    def _load_predict(self) -> PairDataset:
        if self.path is None:
            raise wrong_value("data.path", None, "prediction reads your own files; set data.path")
        files = list_files("path", self.path, self.format)
        lines = all(kind in ("text", "lines") for _, kind in files)
        if lines:
            pairs = [pair for file, _ in files for pair in pairs_of_lines(str(file), None)]
        else:
            pairs = pairs_of_tables("path", self.path, self.format, self.source_column, None)
        return PairDataset([[self._tokens(pair)] for pair in pairs])

    def _given_set(self, documents: list[Document]) -> PairDataset:
        return PairDataset([[TokenPair(one.tokens[: self.max_length], None, one.name)] for one in documents])

    def _options(self, names: bool = False) -> dict[str, Any]:
        collate = PairCollate(
            most=(self.max_length, self.max_target_length),
            pad=(self.vocabulary.pad_id, self.target_vocabulary.pad_id),
            bos=self.target_vocabulary.bos_id,
            eos=self.target_vocabulary.eos_id,
            multiple=int(self.pad_to_multiple or 1),
            names=names,
        )
        return {**super()._options(names), "collate_fn": collate}

    def baselines(self, split: str = "test") -> dict[str, float]:
        """By metric, the best of three answers that take no learning: the source itself, the first words of it (as many as a
        training target has on average), and the commonest training target."""
        from longspan.data.text_baselines import text_scores

        name = "validation" if split == "val" else split
        self.split(name)
        learned, pairs = [pair.target for pair in self._texts["train"]], self._texts[name]
        words = max(1, round(float(np.mean([len(target.split()) for target in learned]))))
        usual, references = commonest(learned), [pair.target for pair in pairs]
        answers = [
            [pair.source for pair in pairs],
            [lead(pair.source, words) for pair in pairs],
            [usual] * len(pairs),
        ]
        scores = [text_scores(EVALUATION_TEXTS, answer, references) for answer in answers]
        return {metric: max(score[metric] for score in scores) for metric in EVALUATION_TEXTS}

    def describe(self) -> dict[str, Any]:
        """Source, vocabularies, and of each split the pairs, rows, tokens, and how many pairs are cut."""
        self.setup()
        source = self.path or self.name or (f"made: {self.generated}" if self.generated else f"bundled {self.bundled}")
        record: dict[str, Any] = {
            "source": str(Path(source).name if self.path else source),
            "vocabulary": self.vocabulary.name,
            "target_vocabulary": self.target_vocabulary.name,
            "max_length": self.max_length,
            "max_target_length": self.max_target_length,
            "packed": self.pack,
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, PairDataset)
            pairs = data.pairs
            record[split] = {
                "pairs": len(pairs),
                "rows": len(data),
                "source_tokens": sum(len(pair.source) for pair in pairs),
                "target_tokens": sum(1 + len(pair.target) for pair in pairs if pair.target is not None),
                "cut": sum(pair.cut for pair in pairs),
            }
        return record

    @property
    def reading(self) -> LookupVocabulary:
        """Texts are read as they are."""
        return BYTES

    @property
    def token_unit(self) -> str | None:
        return None
