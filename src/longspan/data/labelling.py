"""A label for every base of a genome: where its genes are, and on which strand.

Legend: B batch, T = `max_length`, bases a window.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import class_baselines
from longspan.data.corpus import Corpus, Region, WindowDataset, cut_windows
from longspan.data.errors import DataConfigError, DataFileError
from longspan.data.files import list_files
from longspan.data.genes import CLASS_NAMES, OVERLAPS, label_bases
from longspan.data.readers import FastaRecord, Interval, read_bed, read_fasta
from longspan.data.sources import Document
from longspan.data.splits import SPLITS, by_position


class TokenLabellingDataModule(SequenceDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B, T] int64, -100 for padding and for bases not to be scored}.

    Labels: 0 no gene, 1 a gene on +, 2 a gene on -. A base in genes of both strands is not scored (`overlap`
    "ignore"), or has the strand of the gene that begins first ("first").

    Where from: `path` (FASTA: a file, folder or glob) and `genes_path` (BED6), else the `bundled` genome ("h37rv",
    "msmeg"). All records are laid end to end; the last `test_fraction` of them is held out for the test, the
    `validation_fraction` before it for validation, each contiguous, and no window crosses a border. With `test_path`
    and `test_genes_path`, or `test_bundled`, the test is on another genome, and none of the first is kept for it.

    Windows begin `max_length` apart (in training `train_stride`, which may be less, for overlapping windows), so that
    each base is scored once; the last of a region may be short.

    Raises:
        DataConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("token_labelling",)

    def __init__(
        self,
        path: str | None = None,
        genes_path: str | None = None,
        bundled: str | None = "h37rv",
        *,
        batch_size: int = 4,
        max_length: int = 4096,
        seed: int = 0,
        overlap: str = "ignore",
        test_path: str | None = None,
        test_genes_path: str | None = None,
        test_bundled: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        train_stride: int | None = None,
        max_train_windows: int | None = None,
        max_validation_windows: int | None = None,
        max_test_windows: int | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
    ):
        super().__init__(
            vocabulary="nucleotides",
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
        self.genes_path = settings.text_or_none("genes_path", genes_path)
        self.bundled = bundled
        if self.path is None:
            settings.bundled(bundled, tuple(shipped.GENOMES), named=False)
            if self.genes_path is not None:
                raise DataConfigError("genes_path", genes_path, "set data.path to the FASTA that these genes are on")
        else:
            _check_fasta("path", self.path)
        _check_genes("genes_path", self.genes_path)
        self.overlap = settings.choice("overlap", overlap, OVERLAPS)
        self.test_path = settings.text_or_none("test_path", test_path)
        self.test_genes_path = settings.text_or_none("test_genes_path", test_genes_path)
        self.test_bundled = (
            None if test_bundled is None else settings.choice("test_bundled", test_bundled, tuple(shipped.GENOMES))
        )
        if (self.test_path is None) != (self.test_genes_path is None):
            missing = "test_genes_path" if self.test_genes_path is None else "test_path"
            raise DataConfigError(missing, None, "data.test_path (FASTA) and data.test_genes_path (BED) go together")
        if self.test_path is not None:
            if self.test_bundled is not None:
                raise DataConfigError("test_bundled", test_bundled, "data.test_path is set too; set one of them to null")
            _check_fasta("test_path", self.test_path)
            _check_genes("test_genes_path", self.test_genes_path)
        self.validation_fraction = settings.share("validation_fraction", validation_fraction)
        self.test_fraction = settings.share("test_fraction", test_fraction)
        self.train_stride = settings.whole_or_none("train_stride", train_stride, 1) or self.max_length
        if self.train_stride > self.max_length:
            raise DataConfigError("train_stride", train_stride, f"leaves out bases; at most max_length = {max_length}")
        self.class_names, self.num_classes = list(CLASS_NAMES), len(CLASS_NAMES)

    def _load(self) -> dict[str, WindowDataset]:
        own_test = self.test_path is None and self.test_bundled is None
        if self.path is not None:
            if self.genes_path is None:
                raise DataConfigError("genes_path", None, "training on your own FASTA needs its genes; name a BED6 file")
            records, genes = _read_fasta("path", self.path), _read_genes(self.genes_path)
        else:
            records, genes = _read_bundled(str(self.bundled))
        corpus = self._corpus(records, genes)
        sizes = [len(record) for record in records]
        parts = by_position(sizes, self.validation_fraction, self.test_fraction if own_test else 0.0)
        sets = {split: self._windows(split, corpus, parts[split]) for split in SPLITS}
        if not own_test:
            if self.test_path is not None:
                others = _read_fasta("test_path", self.test_path), _read_genes(str(self.test_genes_path))
            else:
                others = _read_bundled(str(self.test_bundled))
            sets["test"] = self._whole("test", *others)
        return sets

    def _load_predict(self) -> WindowDataset:
        if self.path is None:
            raise DataConfigError("path", None, "prediction reads your own files; set data.path to a FASTA file")
        return self._whole("predict", _read_fasta("path", self.path), None)

    def _given_set(self, documents: list[Document]) -> WindowDataset:
        return self._whole("predict", [FastaRecord(d.name, "", d.tokens, d.row.path, d.row.line) for d in documents], None)

    def _whole(self, split: str, records: list[FastaRecord], genes: list[Interval] | None) -> WindowDataset:
        corpus = self._corpus(records, genes)
        return self._windows(split, corpus, [(index, 0, len(record)) for index, record in enumerate(records)])

    def _corpus(self, records: list[FastaRecord], genes: list[Interval] | None) -> Corpus:
        labels = None if genes is None else label_bases(records, genes, self.overlap)
        names = [record.name for record in records]
        return Corpus.build([record.tokens for record in records], names, self.vocabulary, labels=labels)

    def _windows(self, split: str, corpus: Corpus, regions: list[Region]) -> WindowDataset:
        stride = self.train_stride if split == "train" else self.max_length
        return WindowDataset(corpus, cut_windows(regions, self.max_length, stride)).keep(self.limits.get(split))

    def _counts(self, split: str) -> np.ndarray:
        """Bases of each class in a split's windows, [3]."""
        data = self.split(split)
        assert isinstance(data, WindowDataset)
        total = np.zeros(len(CLASS_NAMES), dtype=np.int64)
        for index in range(len(data)):
            labels = data[index]["labels"]
            total += np.bincount(labels[labels >= 0], minlength=len(total))
        return total

    def class_counts(self) -> tuple[np.ndarray, int | None]:
        """Bases of each class in the training windows, [3]."""
        return self._counts("train"), None

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of labelling every base of a split with the training split's commonest class."""
        return class_baselines(self._counts("train"), self._counts(split))

    def describe(self) -> dict[str, Any]:
        """Source, the policy on overlapping genes, and of each split the windows, bases and bases of each class."""
        told: dict[str, Any] = {
            "source": self.path or f"bundled {self.bundled}",
            "test_source": self.test_path or (f"bundled {self.test_bundled}" if self.test_bundled else None),
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": "position",
            "overlap": self.overlap,
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, WindowDataset)
            counts = self._counts(split)
            told[split] = {
                "windows": len(data),
                "bases": data.token_count,
                "classes": dict(zip(CLASS_NAMES, counts.tolist(), strict=True)),
            }
        return json.loads(json.dumps(told))


def _read_bundled(name: str) -> tuple[list[FastaRecord], list[Interval]]:
    fasta, bed = shipped.GENOMES[name]
    return read_fasta(fasta), read_bed(bed)


def _check_fasta(key: str, path: str) -> None:
    for file, kind in list_files(key, path, None):
        if kind != "fasta":
            raise DataConfigError(key, path, f"{file} is of format {kind}; labelling of bases needs FASTA (.fa, .fasta)")


def _check_genes(key: str, path: str | None) -> None:
    if path is not None and not Path(path).expanduser().is_file():
        raise DataConfigError(key, path, f"no such file (looked in {Path.cwd()}); name a BED6 file")


def _read_fasta(key: str, path: str) -> list[FastaRecord]:
    """The records of all files; their names must differ, since genes name them.

    Raises:
        DataFileError: a file is malformed, or a name is in two files.
    """
    records: dict[str, FastaRecord] = {}
    for file, _ in list_files(key, path):
        for record in read_fasta(file):
            if record.name in records:
                other = records[record.name].path
                raise DataFileError(file, record.line, f"record {record.name!r} is in {other} already")
            records[record.name] = record
    return list(records.values())


def _read_genes(path: str) -> list[Interval]:
    return read_bed(Path(path).expanduser())
