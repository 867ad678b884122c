"""A label for every base of a genome: where its genes are, and on which strand.

Legend: B batch, T = `max_length`, bases a window.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.base import SequenceDataModule
from longspan.data.baselines import class_baselines
from longspan.data.corpus import Corpus, Region, WindowDataset, cut_windows
from longspan.data.drawn_windows import Drawing
from longspan.data.encoded_genomes import EncodedGenome, Storage, encoded, mapped_labels
from longspan.data.files import list_files
from longspan.data.genes import AnnotatedGenome, Annotation, Sized, label_bases, on_records
from longspan.data.readers import FastaRecord, Interval
from longspan.data.sources import Document
from longspan.data.splits import SPLITS, by_chromosome
from longspan.data.values import Loading, Shares, gathered
from longspan.data.vocabularies import LETTERS

# keys of the genome that is tested on
TEST_KEYS = ("test_path", "test_genes_path", "test_bundled")


class TokenLabellingDataModule(SequenceDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B, T] int64, -100 for padding and for bases not to be scored}.

    Labels: 0 no gene, 1 a gene on +, 2 a gene on -. A base in genes of both strands is not scored (`overlap`
    "ignore"), or has the strand of the gene that begins first ("first"). `Annotation` asks for other features.

    Where from: `path` (FASTA: a file, folder or glob) and `genes_path` (BED, GFF3, GTF, GenBank), else the `bundled`
    genome ("h37rv", "msmeg"). All records are laid end to end; the last `test_fraction` of them is held out for the test, the
    `validation_fraction` before it for validation, each contiguous, and no window crosses a border. With `test_path`
    and `test_genes_path`, or `test_bundled`, the test is on another genome, and none of the first is kept for it.

    Windows begin `max_length` apart (in training `train_stride`, which may be less, for overlapping windows), so that
    each base is scored once; the last of a region may be short.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    tasks: ClassVar[tuple[str, ...]] = ("token_labelling",)
    source: AnnotatedGenome
    splits: Shares

    def __init__(
        self,
        source: AnnotatedGenome | str | None = None,
        genes_path: str | None = None,
        splits: Shares | None = None,
        annotation: Annotation | None = None,
        loading: Loading | None = None,
        *,
        test: AnnotatedGenome | None = None,
        train_stride: int | None = None,
        **keys: Any,
    ):
        test_keys = {key[5:]: keys.pop(key) for key in TEST_KEYS if key in keys}
        if (test_keys.get("path") is None) != (test_keys.get("genes_path") is None):
            missing = "test_genes_path" if test_keys.get("genes_path") is None else "test_path"
            raise wrong_value(f"data.{missing}", None, "data.test_path (FASTA) and data.test_genes_path (BED) go together")
        if not isinstance(source, AnnotatedGenome):
            # all keys of a genome at once: a path and its genes are checked together
            keys = {"path": source, "genes_path": genes_path, "bundled": "h37rv"} | keys
            source = AnnotatedGenome()
        given = splits or Shares(), annotation or Annotation(), loading or Loading(batch_size=4, max_length=4096)
        self.source, self.splits, self.annotation, loading, self.drawing, self.storage = gathered(
            self, keys, source, *given, Drawing(), Storage()
        )
        (self.test_source,) = gathered(self, test_keys, test or AnnotatedGenome(prefix="test_"))
        self.storage.check(self.source.path)
        super().__init__(settings.choice("vocabulary", self.source.vocabulary, LETTERS[:2]), loading)
        if not self.source:
            settings.bundled(None, tuple(shipped.GENOMES), named=False)
        if self.test_source.path and self.test_source.bundled:
            fix = "data.test_path is set too; set one of them to null"
            raise wrong_value("data.test_bundled", self.test_source.bundled, fix)
        self.train_stride = settings.whole_or_none("train_stride", train_stride, 1) or self.max_length
        if self.train_stride > self.max_length:
            fix = f"leaves out bases; at most max_length = {self.max_length}"
            raise wrong_value("data.train_stride", train_stride, fix)
        self.class_names = self.annotation.class_names
        self.num_classes = len(self.class_names)

    def _load(self) -> dict[str, WindowDataset]:
        genes = self.source.genes(self.annotation)  # asked for first: that none are named is known before a genome is read
        genome = self._genome(self.source)
        sizes = [len(record) for record in _records(genome)]
        shares = self.splits.validation_fraction, 0.0 if self.test_source else self.splits.test_fraction
        corpus = self._corpus(genome, genes)
        parts = by_chromosome(corpus.names, sizes, self.splits, *shares)
        sets = {split: self._windows(split, corpus, parts[split]) for split in SPLITS}
        if self.test_source:
            sets["test"] = self._whole("test", self._genome(self.test_source), self.test_source.genes(self.annotation))
        return sets

    def _load_predict(self) -> WindowDataset:
        if self.source.path is None:
            raise wrong_value("data.path", None, "prediction reads your own files; set data.path to a FASTA file")
        return self._whole("predict", self._genome(self.source), None)

    def _given_set(self, documents: list[Document]) -> WindowDataset:
        return self._whole("predict", [FastaRecord(d.name, "", d.tokens, d.row.path, d.row.line) for d in documents], None)

    def _genome(self, source: AnnotatedGenome) -> list[FastaRecord] | EncodedGenome:
        """Its records, or where it is large (see `Storage`) the files that they are encoded in."""
        files = list_files(f"{source.prefix}path", source.path) if source.path else []
        return encoded(files, self.reading) if self.storage.maps(files) else source.records(self.reading)

    def _whole(self, split: str, genome: list[FastaRecord] | EncodedGenome, genes: list[Interval] | None) -> WindowDataset:
        corpus = self._corpus(genome, genes)
        return self._windows(split, corpus, [(index, 0, len(record)) for index, record in enumerate(_records(genome))])

    def _corpus(self, genome: list[FastaRecord] | EncodedGenome, genes: list[Interval] | None) -> Corpus:
        kept = None if genes is None else self._on_records(_records(genome), genes)
        if isinstance(genome, EncodedGenome):
            how = self.annotation.overlap, self.annotation
            return genome.corpus(None if kept is None else mapped_labels(genome, kept, *how))
        labels = None if kept is None else label_bases(genome, kept, self.annotation.overlap, self.annotation)
        return Corpus.build([record.tokens for record in genome], [r.name for r in genome], self.vocabulary, labels=labels)

    def _on_records(self, records: Sequence[Sized], genes: list[Interval]) -> list[Interval]:
        """The features on these records; others are an error, or left out and counted."""
        kept, left_out = on_records(records, genes, self.annotation.on_missing)
        names = {record.name for record in records}
        first = next((f"{gene.path}, line {gene.line}" for gene in genes if gene.chrom not in names), "")
        self.dropped.add("features on sequences that the FASTA does not have", left_out, first)
        return kept

    def _windows(self, split: str, corpus: Corpus, regions: list[Region]) -> WindowDataset:
        stride = self.train_stride if split == "train" else self.max_length
        if split == "train":
            drawn = self.drawing.dataset(corpus, regions, self.max_length, stride, self.seed, self.limits["train"])
            if drawn is not None:
                return drawn
        return WindowDataset(corpus, cut_windows(regions, self.max_length, stride)).keep(self.limits.get(split))

    def _counts(self, split: str) -> np.ndarray:
        """Bases of each class in a split's windows, [3]."""
        return self._counted(split)[0]

    def _counted(self, split: str) -> tuple[np.ndarray, int]:
        """Those, and how many bases are of no class, since they are in features of several labels."""
        data = self.split(split)
        assert isinstance(data, WindowDataset)
        total, bases = np.zeros(self.num_classes or 0, dtype=np.int64), 0
        for index in range(len(data)):
            labels = data[index]["labels"]
            total += np.bincount(labels[labels >= 0], minlength=len(total))
            bases += len(labels)
        return total, bases - int(total.sum())

    def class_counts(self) -> tuple[np.ndarray, int | None]:
        """Bases of each class in the training windows, [3]."""
        return self._counts("train"), None

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of labelling every base of a split with the training split's commonest class."""
        return class_baselines(self._counts("train"), self._counts(split))

    def describe(self) -> dict[str, Any]:
        """Source, the policy on overlapping genes, and of each split the windows, bases and bases of each class; of bases
        that are in features of several labels (`overlap`) how many."""
        record: dict[str, Any] = {
            "source": str(self.source),
            "test_source": str(self.test_source) if self.test_source else None,
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": "position",
            "overlap": self.annotation.overlap,
        }
        for split in SPLITS:
            data = self.split(split)
            assert isinstance(data, WindowDataset)
            counts, unscored = self._counted(split)
            record[split] = {
                "windows": len(data),
                "bases": data.token_count,
                "classes": dict(zip(self.class_names or (), counts.tolist(), strict=True)),
            }
            if unscored:
                record[split]["not_scored"] = unscored
        if self.dropped.counts:
            record["left_out"] = dict(self.dropped.counts)
        return json.loads(json.dumps(record))

    @property
    def label_complement(self) -> np.ndarray | None:
        """[K]: a feature on + is on - of the other strand."""
        if not self.annotation.strands:
            return None
        labels = np.arange(self.num_classes or 0)
        return np.where(labels == 0, 0, labels + np.where(labels % 2 == 1, 1, -1))


def _records(genome: list[FastaRecord] | EncodedGenome) -> Sequence[Sized]:
    return genome.records if isinstance(genome, EncodedGenome) else genome
