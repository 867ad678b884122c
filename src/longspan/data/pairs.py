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
from longspan.data.dropped import in_training
from longspan.data.errors import DataFileError
from longspan.data.files import list_files
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
from longspan.data.sources import Columns, Document
from longspan.data.splits import SPLITS, by_groups, joined_groups
from longspan.data.synthetic.pairs import GENERATED, made_pairs
from longspan.data.values import HeldOut, Loading, Origin, gathered, one_strand
from longspan.data.vocabularies import BYTES, LookupVocabulary, OutsideVocabularyError, Vocabulary
from longspan.data.vocabularies import vocabulary as vocabulary_named

EVALUATION_TEXTS = ("bleu", "exact_match", "rouge1", "rouge2", "rougeL")


class PairedDataModule(SequenceDataModule):
    """Sources and targets for `task=sequence_to_sequence`; see `PairCollate` for the batches.

    Where from: `path`, tables with `source_column` and `target_column` (`delimiter`, `header`, `quoting`: see `Source`); `path`
    and `target_path`, two files of which line n of one goes with line n of the other; `name`, a Hugging Face data set;
    `generated` "dates" or "numbers", of which `pairs` are made; or `bundled` "addresses": passages, and the first sentence of
    each.

    What is held out: `validation_path` and `test_path` (with `validation_target_path`, `test_target_path`), or the Hub's
    splits; otherwise shares of the pairs, of which equal sources stay together (of the addresses, whole ones).

    `vocabulary` is of both sides, unless `target_vocabulary` is another; "bpe:2000" is trained on the training split. Sources
    longer than `max_length` keep their head, and targets their first `max_target_length` - 1 tokens; `describe` counts them.
    With `pack` several short pairs share a row in training, and do not see each other.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sequence_to_sequence",)
    source: Origin
    splits: HeldOut

    def __init__(
        self,
        source: Origin | str | None = None,
        target_path: str | None = None,
        splits: HeldOut | None = None,
        loading: Loading | None = None,
        *,
        generated: str | None = None,
        pairs: int = 20_000,
        source_column: str | int = "source",
        target_column: str | int = "target",
        delimiter: str | None = None,
        header: bool = True,
        quoting: bool | None = None,
        target_vocabulary: str | Vocabulary | None = None,
        max_target_length: int = 64,
        validation_target_path: str | None = None,
        test_target_path: str | None = None,
        pack: bool = False,
        **keys: Any,
    ):
        origin = source if isinstance(source, Origin) else Origin(path=settings.text_or_none("path", source))
        given = origin, splits or HeldOut(), loading or Loading(batch_size=32, max_length=128, pad_to_multiple=8)
        self.source, self.splits, loading = gathered(self, keys, *given)
        one_strand(loading)
        super().__init__(self.source.vocabulary, loading, self.source.vocabulary_cache)
        named = target_vocabulary
        self._target_vocabulary: Any = vocabulary_named(named, "target_vocabulary") if isinstance(named, str) else named
        self.max_target_length = settings.whole("max_target_length", max_target_length, 2)
        self.generated = generated
        self._check_origin()
        self.target_paths = {"train": target_path, "validation": validation_target_path, "test": test_target_path}
        self._check_files()
        self.source_column = settings.text("source_column", settings.column("source_column", source_column))
        self.target_column = settings.text("target_column", settings.column("target_column", target_column))
        header, quoting = settings.flag("header", header), settings.quoting(quoting)
        self.columns = Columns(delimiter=settings.delimiter(delimiter), header=header, quoting=quoting)
        self.pairs = settings.whole("pairs", pairs, 10)
        self.pack = settings.flag("pack", pack)

    @property
    def _named(self) -> dict[str, str]:
        """What names the data, {key: value}, the first of them first."""
        origin = self.source
        named = {"path": origin.path, "name": origin.name, "generated": self.generated, "bundled": origin.bundled}
        return {key: value for key, value in named.items() if value}

    def _check_origin(self) -> None:
        given = list(self._named)
        if not given:
            fix = f"name your own files, a Hugging Face data set by data.name, or take data.generated={'|'.join(GENERATED)}"
            raise wrong_value("data.path", None, f"{fix} or data.bundled=addresses")
        # files of one's own to predict on go with data that is made or bundled
        if len(given) > 1 and "name" in given:
            raise wrong_value(
                f"data.{given[1]}", self._named[given[1]], f"data.{given[0]} is given too; give null for one of them"
            )
        if self.generated is not None:
            settings.choice("generated", self.generated, GENERATED)
        if self.source.bundled is not None:
            settings.choice("bundled", self.source.bundled, ("addresses",))

    def _check_files(self) -> None:
        for split, (key, path) in self.splits.files(self.source).items():
            target, target_key = self.target_paths[split], key.replace("path", "target_path")
            for name, value in ((key, path), (target_key, target)):
                if value is not None:
                    list_files(name, settings.text(name, value), "lines" if target is not None else self.source.format)
            if target is not None and path is None:
                raise wrong_value(f"data.{target_key}", target, f"goes with data.{key}, which is null; give both")

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
        shares = self.splits.shares(given)
        key, value = next(iter(self._named.items()))
        wanted = 1 + sum(share > 0 for share in shares.values())
        groups = joined_groups([pair.group for pair in pool], (pair.source.encode() for pair in pool), wanted)
        settings.enough_groups(key, value, groups, wanted, "source")
        chosen = by_groups(groups, np.ones((len(pool), 1)), seed=self.seed, **shares)
        for split in SPLITS:
            if split == "train" or split not in parts:
                parts[split] = [pool[index] for index in chosen[split]]
        self.in_training = in_training({split: (one.source.encode() for one in parts[split]) for split in SPLITS}, "sources")
        self._train_vocabularies(parts["train"])
        self._texts = parts
        return {split: self._dataset(split, parts[split]) for split in SPLITS}

    def _read(self, split: str) -> list[Pair] | None:
        origin, target = self.source, self.target_paths[split]
        key, path = self.splits.files(origin)[split]
        if split == "train" and self.generated is not None:
            return made_pairs(self.generated, self.pairs, self.seed)
        if split == "train" and origin.bundled is not None:
            return summaries_of_addresses(self.max_length, self.max_target_length)
        if path is not None and target is not None:
            return pairs_of_lines(path, target)
        if path is not None:
            return pairs_of_tables(key, path, origin.format, self.source_column, self.target_column, self.columns)
        hub = self.splits.hub(split)
        if origin.name is None or hub is None:
            return None
        return pairs_of_hub(origin.name, origin.subset, hub, self.source_column, self.target_column)

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
        path, format = self.source.path, self.source.format
        if path is None:
            raise wrong_value("data.path", None, "prediction reads your own files; set data.path")
        files = list_files("path", path, format)
        lines = all(kind in ("text", "lines") for _, kind in files)
        if lines:
            pairs = [pair for file, _ in files for pair in pairs_of_lines(str(file), None)]
        else:
            pairs = pairs_of_tables("path", path, format, self.source_column, None, self.columns)
        return PairDataset([[self._tokens(pair)] for pair in pairs])

    def _given_set(self, documents: list[Document]) -> PairDataset:
        most = self.max_length
        return PairDataset([[TokenPair(one.tokens[:most], None, one.name, cut=len(one.tokens) > most)] for one in documents])

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
        origin = self.source
        source = origin.path or origin.name or (f"made: {self.generated}" if self.generated else str(origin))
        record: dict[str, Any] = {
            "source": str(Path(source).name if origin.path else source),
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
            if split in self.in_training:
                record[split]["in_training"] = self.in_training[split]
        return record

    @property
    def reading(self) -> LookupVocabulary:
        """Texts are read as they are."""
        return BYTES

    @property
    def token_unit(self) -> str | None:
        return None
