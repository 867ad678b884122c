"""ListOps as a data module: made to the specification, or read from the published files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longspan.data import settings
from longspan.data.errors import DataFileError, each
from longspan.data.files import read_bytes
from longspan.data.labelled import LabelledDataModule, LabelledSet
from longspan.data.lra.files import split_files
from longspan.data.lra.listops import TOKENS, ListOps, ListOpsVocabulary, value_of
from longspan.data.made import Made, kept
from longspan.data.splits import SPLITS
from longspan.data.values import Loading, gathered

PAPER = "2011.04006"
NUMBERS = {name: number for number, name in enumerate(TOKENS)}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many sequences are made for each split, and the seed that they are made by, whatever the run's is."""

    train_examples: int = 96_000
    validation_examples: int = 2_000
    test_examples: int = 2_000
    made_seed: int = 0

    def __post_init__(self) -> None:
        for split in SPLITS:
            settings.whole(f"{split}_examples", getattr(self, f"{split}_examples"), 1)
        settings.whole("made_seed", self.made_seed, 0)

    def under(self, limits: Mapping[str, int | None]) -> dict[str, int]:
        """Sequences of each split, where no more are used than `limits` say."""
        sizes = {split: int(getattr(self, f"{split}_examples")) for split in SPLITS}
        return {split: min(size, limits[split] or size) for split, size in sizes.items()}


class ListOpsDataModule(LabelledDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B]}: nested operations on digits, and the digit that they come to.

    `path`: the folder of the published basic_train.tsv, basic_val.tsv and basic_test.tsv; null makes expressions: see
    `longspan.data.lra.listops.ListOps` and `Sizes` for what else can be set. Expressions longer than `max_length` are cut.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    lengths: ClassVar[str] = "always"

    def __init__(self, path: str | None = None, **keys: Any):
        self.path = settings.text_or_none("path", path)
        default = Loading(batch_size=32, max_length=2000)
        self.listops, self.sizes, loading = gathered(self, keys, ListOps(), Sizes(), default)
        super().__init__(ListOpsVocabulary(), loading)
        self._classes([str(digit) for digit in range(10)])

    def _labelled(self) -> dict[str, LabelledSet]:
        if self.path is not None:
            return {split: self._read(file) for split, file in split_files(self.path, "basic_{}.tsv", ("train", "val", "test"))}
        sizes = self.sizes.under(self.limits)
        made = kept("listops", asdict(self.listops), self.listops.expression, self.sizes.made_seed, sizes)
        return {split: self._set(part, part.targets, np.diff(part.offsets)) for split, part in made.items()}

    def _set(self, tokens: Sequence[np.ndarray] | Made, targets: np.ndarray, lengths: np.ndarray) -> LabelledSet:
        return LabelledSet(
            lambda number: tokens[number][: self.max_length], targets, len(tokens), cut=lengths > self.max_length
        )

    def _read(self, file: Path) -> LabelledSet:
        lines = read_bytes(file).decode("utf-8", errors="replace").splitlines()
        if not lines or [word.strip().lower() for word in lines[0].split("\t")] != ["source", "target"]:
            raise DataFileError(file, 1, "the header is not Source and Target, as published ListOps files have it")

        def row(numbered: tuple[int, str]) -> tuple[np.ndarray, int]:
            number, line = numbered
            text, _, target = line.rpartition("\t")
            words = [word for word in text.split() if word not in "()"]
            try:
                value = value_of(words)
            except ValueError as error:
                raise DataFileError(file, number, str(error)) from None
            if target.strip() != str(value):
                raise DataFileError(file, number, f"the target is {target.strip()!r}, but the expression comes to {value}")
            return np.array([NUMBERS[word] for word in words], dtype=np.uint8), value

        rows = each(enumerate(lines[1:], start=2), row)
        if not rows:
            raise DataFileError(file, None, "no expressions follow the header")
        tokens = [tokens for tokens, _ in rows]
        return self._set(tokens, np.array([value for _, value in rows]), np.array([len(row) for row in tokens]))

    def _given_set(self, documents: list[Any]) -> LabelledSet:
        tokens = [document.tokens[: self.max_length] for document in documents]
        cut = np.array([len(document.tokens) > self.max_length for document in documents])
        return LabelledSet(tokens.__getitem__, None, len(tokens), [document.name for document in documents], cut)

    def _load_predict(self) -> LabelledSet:
        return self._labelled()["test"]

    @property
    def to_record(self) -> dict[str, Any]:
        where = {"source": self.path} if self.path else {"source": "made: ListOps", **asdict(self.listops)}
        return {**where, "paper": PAPER}
