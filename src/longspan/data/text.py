"""Language modelling, causal or masked, over texts and genomes.

Legend: T = `max_length`, tokens a window.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar

import numpy as np

from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import language_baselines
from longspan.data.corpus import Corpus, PackedDataset, Region, WindowDataset, cut_windows, pack_windows
from longspan.data.errors import DataConfigError
from longspan.data.files import FORMATS, list_files
from longspan.data.readers import read_hub
from longspan.data.sources import Columns, Document, read_documents, rows_to_documents
from longspan.data.splits import SPLITS, by_groups, by_position

# with fewer documents than this, holding out whole ones makes splits of very unequal size
FEW_DOCUMENTS = 10


class TextDataModule(SequenceDataModule):
    """Fixed-length windows over documents: {"tokens": [B, T], "lengths": [B] in a batch with a short window}.

    A document begins with a <bos> token, and windows of one document share one token, so every byte (base) of every
    document is predicted exactly once an epoch and bits per byte count exactly the bytes. With `pack`, the short
    windows of several documents share a row, and such batches have "segments" [B, T].

    Where from: `path` (a file, folder or glob: text, one document a file; JSONL, CSV, TSV, Parquet, one a row;
    FASTA with vocabulary="nucleotides", one a record), or `name` (a Hugging Face data set), else what is `bundled`
    ("addresses", "h37rv", "msmeg"). `format` overrides the suffix; "lines" makes each line of a text a document.

    What is held out: `validation_path`, `test_path` (or the Hub's `validation_split`, `test_split`) where given.
    Otherwise `split_by` "document" holds out whole documents (equal ones stay together), "position" the last parts
    of all documents laid end to end, "auto" the latter where there are fewer than 10. The bundled addresses are held
    out by the last digit of their year, so that each split spans all decades.

    Raises:
        DataConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("language_modelling", "masked_modelling")
    lengths: ClassVar[str] = "if_short"

    def __init__(
        self,
        path: str | None = None,
        name: str | None = None,
        bundled: str | None = "addresses",
        *,
        batch_size: int = 8,
        max_length: int = 1024,
        seed: int = 0,
        vocabulary: str = "bytes",
        format: str | None = None,
        text_column: str = "text",
        id_column: str | None = None,
        subset: str | None = None,
        train_split: str = "train",
        validation_split: str | None = None,
        test_split: str | None = None,
        validation_path: str | None = None,
        test_path: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_by: str = "auto",
        validation_years_ending: int = 5,
        test_years_ending: int = 0,
        train_stride: int | None = None,
        pack: bool = False,
        max_train_windows: int | None = None,
        max_validation_windows: int | None = None,
        max_test_windows: int | None = None,
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
        )
        self.path = settings.text_or_none("path", path)
        self.name = settings.text_or_none("name", name)
        self.bundled = bundled
        if self.path and self.name:
            raise DataConfigError("name", name, f"data.path={path!r} is set too; set one of them to null")
        if not self.path and not self.name:
            settings.bundled(bundled, ("addresses", *shipped.GENOMES))
            wanted = "bytes" if bundled == "addresses" else "nucleotides"
            if vocabulary != wanted:
                raise DataConfigError("vocabulary", vocabulary, f"the bundled {bundled} needs {wanted}")
        if format is not None:
            settings.choice("format", format, FORMATS)
        self.format = format
        self.columns = Columns(settings.text("text_column", text_column), settings.text_or_none("id_column", id_column))
        self.subset = settings.text_or_none("subset", subset)
        self.hub_splits = {
            "train": settings.text("train_split", train_split),
            "validation": settings.text_or_none("validation_split", validation_split),
            "test": settings.text_or_none("test_split", test_split),
        }
        self.paths = {"train": self.path, "validation": validation_path, "test": test_path}
        for split in SPLITS:
            key = "path" if split == "train" else f"{split}_path"
            if self.paths[split] is not None:
                list_files(key, settings.text(key, self.paths[split]), format)
        self.validation_fraction = settings.share("validation_fraction", validation_fraction)
        self.test_fraction = settings.share("test_fraction", test_fraction)
        self.split_by = settings.choice("split_by", split_by, ("auto", "document", "position"))
        self.year_digits = {
            "validation": settings.whole("validation_years_ending", validation_years_ending, 0),
            "test": settings.whole("test_years_ending", test_years_ending, 0),
        }
        if len({digit % 10 for digit in self.year_digits.values()}) < 2 or max(self.year_digits.values()) > 9:
            raise DataConfigError("test_years_ending", test_years_ending, "give a digit other than validation's, 0 to 9")
        cover = self.max_length - 1
        self.train_stride = settings.whole_or_none("train_stride", train_stride, 1) or cover
        if self.train_stride > cover:
            raise DataConfigError("train_stride", train_stride, f"leaves out tokens; at most max_length - 1 = {cover}")
        if not isinstance(pack, bool):
            raise DataConfigError("pack", pack, "give true or false")
        self.pack = pack
        self._regions: dict[str, list[Region]] = {}

    def _load(self) -> dict[str, WindowDataset]:
        given = {split: self._read(split) for split in SPLITS}
        pool = given["train"]
        assert pool is not None
        shares = {
            "validation": 0.0 if given["validation"] is not None else self.validation_fraction,
            "test": 0.0 if given["test"] is not None else self.test_fraction,
        }
        corpus = self._corpus(pool)
        self._regions = self._hold_out(corpus, pool, shares)
        sets = {split: self._windows(split, corpus, self._regions[split]) for split in SPLITS}
        for split in ("validation", "test"):
            documents = given[split]
            if documents is not None:
                sets[split] = self._whole(split, documents)
        return sets

    def _load_predict(self) -> WindowDataset:
        if self.path is None:
            raise DataConfigError("path", None, "prediction reads your own files; set data.path")
        return self._given_set(read_documents("path", self.path, self.vocabulary, self.columns, self.format))

    def _given_set(self, documents: list[Document]) -> WindowDataset:
        return self._whole("predict", documents)

    def _read(self, split: str) -> list[Document] | None:
        """The documents that are named for a split; None where it is to be held out of the training data."""
        path = self.paths[split]
        if path is not None:
            key = "path" if split == "train" else f"{split}_path"
            return read_documents(key, path, self.vocabulary, self.columns, self.format)
        if self.name:
            hub_split = self.hub_splits[split]
            if hub_split is None:
                return None
            rows = read_hub(self.name, self.subset, hub_split)
            return rows_to_documents(rows, self.vocabulary, self.columns)
        if split != "train":
            return None
        if self.bundled == "addresses":
            return read_documents("bundled", shipped.ADDRESSES, self.vocabulary, Columns("text", "id"), "jsonl")
        return read_documents("bundled", shipped.GENOMES[str(self.bundled)][0], self.vocabulary, self.columns, "fasta")

    def _corpus(self, documents: list[Document]) -> Corpus:
        return Corpus.build(
            [document.tokens for document in documents],
            [document.name for document in documents],
            self.vocabulary,
            first=self.vocabulary.bos_id,
        )

    def _hold_out(self, corpus: Corpus, documents: list[Document], shares: dict[str, float]) -> dict[str, list[Region]]:
        if self._is_addresses:
            digit = {self.year_digits[split]: split for split in ("validation", "test") if shares[split]}
            chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
            for index, document in enumerate(documents):
                chosen[digit.get(document.row.values["year"] % 10, "train")].append(index)
            return {split: [(d, 0, corpus.size(d)) for d in chosen[split]] for split in SPLITS}
        sizes = [corpus.size(document) for document in range(len(corpus))]
        if self.split_by == "position" or (self.split_by == "auto" and len(sizes) < FEW_DOCUMENTS):
            parts = by_position(sizes, shares["validation"], shares["test"])
            # a held-out part's first token needs the one before it as context, to be predicted once in its own split;
            # where a cut leaves a part only a document's <bos>, there is nothing to predict
            return {split: [(d, max(0, begin - 1), end) for d, begin, end in parts[split] if end > 1] for split in SPLITS}
        groups = [hashlib.sha256(document.tokens.tobytes()).digest() for document in documents]
        source = "path" if self.path else "name" if self.name else "bundled"
        wanted = 1 + sum(share > 0 for share in shares.values())
        settings.enough_groups(source, getattr(self, source), groups, wanted, "text")
        weights = np.array(sizes, dtype=float)[:, None]
        split_documents = by_groups(groups, weights, validation=shares["validation"], test=shares["test"], seed=self.seed)
        return {split: [(int(d), 0, sizes[d]) for d in split_documents[split]] for split in SPLITS}

    def _windows(self, split: str, corpus: Corpus, regions: list[Region]) -> WindowDataset:
        stride = self.train_stride if split == "train" else self.max_length - 1
        windows = cut_windows(regions, self.max_length, stride)
        data = WindowDataset(corpus, windows)
        if self.pack and split != "predict":
            data = PackedDataset(corpus, windows, pack_windows(windows[:, 2], self.max_length))
        return data.keep(self.limits.get(split))

    def _whole(self, split: str, documents: list[Document]) -> WindowDataset:
        corpus = self._corpus(documents)
        return self._windows(split, corpus, [(d, 0, corpus.size(d)) for d in range(len(corpus))])

    @property
    def _is_addresses(self) -> bool:
        return not self.path and not self.name and self.bundled == "addresses"

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Unigram and bigram bits a byte (base), of counts on the training split with one added, on a split."""
        train, data = self.split("train"), self.split(split)
        assert isinstance(train, WindowDataset) and isinstance(data, WindowDataset)
        return language_baselines(train, data, self.vocab_size, len(self.vocabulary.symbols))

    def describe(self) -> dict[str, Any]:
        """Source, vocabulary, and of each split the documents, windows and predicted symbols."""
        told: dict[str, Any] = {
            "source": self.path or self.name or f"bundled {self.bundled}",
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": "year" if self._is_addresses else self.split_by,
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, WindowDataset)
            told[split] = {
                "documents": len(np.unique(data.windows[:, 0])),
                "windows": len(data),
                "symbols": data.token_count - len(data.windows),
            }
        return json.loads(json.dumps(told))


class GenomeDataModule(TextDataModule):
    """Nucleotide modelling, causal or masked, over FASTA: a `TextDataModule` with a genome's defaults.

    `bundled` "h37rv" or "msmeg" where `path` names no FASTA; contiguous regions at the end are held out.
    """

    tasks: ClassVar[tuple[str, ...]] = ("masked_modelling", "language_modelling")

    def __init__(self, path: str | None = None, bundled: str | None = "h37rv", **others: Any):
        others.setdefault("vocabulary", "nucleotides")
        others.setdefault("split_by", "position")
        super().__init__(path, None, bundled, **others)
