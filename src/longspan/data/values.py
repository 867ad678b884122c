"""Settings of data modules, as small checked values: where data comes from, what is held out, how it is dealt out.

Each field is a key of `conf/data/` of the same name. A data module takes the values themselves, or their fields as
keywords of its own, as Hydra gives them: `TextDataModule(Source(path="x.txt"))` is `TextDataModule(path="x.txt")`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.files import FORMATS, list_files
from longspan.data.vocabularies import Vocabulary
from longspan.nearest import did_you_mean, listed, nearest

Value = TypeVar("Value")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where data comes from: one of `path` (files), `name` (a Hugging Face data set) and `bundled`, in this order.

    `path`: a file, folder or glob; `format` overrides what its suffixes say. `subset`: the configuration of a Hugging
    Face data set. `vocabulary`: the name of one, which turns characters into tokens; one that is trained is kept in
    `vocabulary_cache`, a folder.
    """

    path: str | None = None
    name: str | None = None
    bundled: str | None = None
    subset: str | None = None
    format: str | None = None
    vocabulary: str | Vocabulary = "bytes"
    vocabulary_cache: str | None = None

    def __post_init__(self) -> None:
        for key in ("path", "name", "subset"):
            settings.text_or_none(key, getattr(self, key))
        if self.path and self.name:
            raise wrong_value("data.name", self.name, f"data.path={self.path!r} is set too; set one of them to null")
        if self.format is not None:
            settings.choice("format", self.format, FORMATS)

    @property
    def key(self) -> str:
        """The field that names the data."""
        return "path" if self.path else "name" if self.name else "bundled"

    @property
    def named(self) -> str | None:
        """What it says."""
        return getattr(self, self.key)

    def __str__(self) -> str:
        return self.path or self.name or f"bundled {self.bundled}"


@dataclass(frozen=True, kw_only=True)
class Source(Origin):
    """Where sequences come from, and how they stand there.

    `text_column`, `id_column`: of tables; rows without an `id_column` are numbered. `delimiter` of CSV and TSV: a character,
    or "tab"; None: the one that the first line has. `header`: whether their first line names the columns; without, columns
    are named "1", "2", ... `quoting`: see `read_csv`. `on_empty`: what becomes of a row, a line or a text file without text,
    or of blanks alone: "error", or "drop", counted and printed.
    """

    text_column: str = "text"
    id_column: str | None = None
    delimiter: str | None = None
    header: bool = True
    quoting: bool | None = None
    on_empty: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("text_column", "id_column"):
            object.__setattr__(self, key, settings.column(key, getattr(self, key)))
        settings.flag("header", self.header)
        settings.quoting(self.quoting)
        settings.choice("on_empty", self.on_empty, settings.MISSING)
        object.__setattr__(self, "delimiter", settings.delimiter(self.delimiter))

    def bundled_of(self, options: Mapping[str, str]) -> str | None:
        """The bundled data set, where no other is named. `options`: {name: vocabulary}.

        Raises:
            ConfigError: no data is named, or none of `options`, or it has another vocabulary.
        """
        if self.key != "bundled":
            return None
        name = settings.bundled(self.bundled, tuple(options))
        known = self.vocabulary if isinstance(self.vocabulary, str) else self.vocabulary.name
        bases = known.startswith(("nucleotides", "kmers"))
        if bases != (options[name] == "nucleotides") or known == "proteins":
            wanted = "nucleotides or k-mers" if options[name] == "nucleotides" else "bytes or subwords"
            raise wrong_value("data.vocabulary", known, f"the bundled {name} needs {wanted}")
        return name


@dataclass(frozen=True, kw_only=True)
class Fractions:
    """The shares of the data that are held out of training."""

    validation_fraction: float = 0.1
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        for key in ("validation_fraction", "test_fraction"):
            object.__setattr__(self, key, settings.share(key, getattr(self, key)))


@dataclass(frozen=True, kw_only=True)
class Shares(Fractions):
    """The shares of the data that are held out of training, or by name whole records of a genome, such as chromosomes."""

    validation_chromosomes: Sequence[str] | None = None
    test_chromosomes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("validation_chromosomes", "test_chromosomes"):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, tuple(settings.text(key, name) for name in getattr(self, key)))
        if both := set(self.validation_chromosomes or ()) & set(self.test_chromosomes or ()):
            raise wrong_value("data.test_chromosomes", list(self.test_chromosomes or ()), f"{min(both)} is validation's too")


@dataclass(frozen=True, kw_only=True)
class HeldOut(Fractions):
    """What is held out of training: files or Hub splits of their own where given, else shares of the data."""

    train_split: str = "train"
    validation_split: str | None = None
    test_split: str | None = None
    validation_path: str | None = None
    test_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.text("train_split", self.train_split)
        for key in ("validation_split", "test_split", "validation_path", "test_path"):
            settings.text_or_none(key, getattr(self, key))

    def files(self, source: Origin) -> dict[str, tuple[str, str | None]]:
        """{split: (key, path)}, of the files that are named for each."""
        return {
            "train": ("path", source.path),
            "validation": ("validation_path", self.validation_path),
            "test": ("test_path", self.test_path),
        }

    def hub(self, split: str) -> str | None:
        """The Hub's own split that serves as `split`, if any does."""
        return {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}[split]

    def shares(self, given: Mapping[str, object]) -> dict[str, float]:
        """The share of the training data to hold out for each split that `given` has nothing for."""
        return {
            "validation": 0.0 if given["validation"] is not None else self.validation_fraction,
            "test": 0.0 if given["test"] is not None else self.test_fraction,
        }


@dataclass(frozen=True, kw_only=True)
class Splits(HeldOut, Shares):
    """What is held out of training, of documents or their parts.

    `split_by`: what a share is made of, see the data modules. `group_column`: rows of one group are never in two splits.
    """

    split_by: str = "auto"
    group_column: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.text_or_none("group_column", self.group_column)
        settings.choice("split_by", self.split_by, ("auto", "document", "position"))


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How sequences are dealt out. `batch_size` sequences a device a step; `max_length` tokens a sequence.

    `max_<split>_windows`: the number of windows of a split that are used at most, evenly spaced over it, the same ones
    in every run. `pad_to_multiple`: null pads each batch to `max_length`; else to its longest sequence, rounded up to it.
    `reverse_complement`: training reads each nucleotide sequence from either strand, drawn anew each epoch.
    """

    batch_size: int = 8
    max_length: int = 1024
    seed: int = 0
    num_workers: int = 0
    drop_last: bool = False
    max_train_windows: int | None = None
    max_validation_windows: int | None = None
    max_test_windows: int | None = None
    pad_to_multiple: int | None = None
    reverse_complement: bool = False

    def __post_init__(self) -> None:
        for key, least in (("batch_size", 1), ("max_length", 2), ("seed", 0), ("num_workers", 0)):
            settings.whole(key, getattr(self, key), least)
        for key in (*(f"max_{split}_windows" for split in SPLITS), "pad_to_multiple"):
            settings.whole_or_none(key, getattr(self, key), 1)
        settings.flag("drop_last", self.drop_last)
        settings.flag("reverse_complement", self.reverse_complement)

    @property
    def limits(self) -> dict[str, int | None]:
        """The most windows of each split."""
        return {split: getattr(self, f"max_{split}_windows") for split in SPLITS}


def one_strand(loading: Loading) -> None:
    """Raises ConfigError where training is to read either strand of data that is no single sequences of bases."""
    if loading.reverse_complement:
        raise wrong_value("data.reverse_complement", True, "is for genomes and classes of DNA; set it to false")


def check_files(source: Source, splits: Splits) -> None:
    """Raises ConfigError where files that are named are not there, or of no known format."""
    for key, path in splits.files(source).values():
        if path is not None:
            list_files(key, path, source.format)


def gathered(module: object, flat: Mapping[str, Any], *values: Any) -> list[Any]:
    """The values with the fields that `flat` gives replaced, in order; a field of two values is given to both.

    Raises:
        ConfigError: a key is a field of none of them; the message names the nearest that is.
    """
    known = {field.name for value in values for field in fields(value)}
    own = inspect.signature(type(module)).parameters.values()
    known |= {p.name for p in own if p.kind is p.KEYWORD_ONLY or p.annotation == "str | None"}
    for key, value in flat.items():
        if key not in known:
            near = nearest(key, known)
            said = f"is no setting of {type(module).__name__}.{did_you_mean(f'data.{near}' if near else None)}"
            raise wrong_value(f"data.{key}", value, f"{said} It takes {listed(known)}")
    return [_replaced(value, flat) for value in values]


def _replaced(value: Value, flat: Mapping[str, Any]) -> Value:
    own = {field.name: flat[field.name] for field in fields(value) if field.name in flat}  # type: ignore[arg-type]
    return replace(value, **own) if own else value  # type: ignore[type-var]


def source_of(given: Source | str | None, default: Source) -> Source:
    """The source that a data module is given as its first argument, where a text is a path."""
    if given is None:
        return default
    return given if isinstance(given, Source) else replace(default, path=given)
