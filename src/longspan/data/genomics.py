"""Published benchmarks of DNA sequences with a class each: Genomic Benchmarks, the Nucleotide Transformer's tasks and GUE.

Each is read from a folder in the layout that it was published in, or from the Hugging Face Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.errors import DataFileError, each
from longspan.data.files import read_bytes
from longspan.data.labelled import LabelledDataModule, LabelledSet
from longspan.data.labels import sort_classes
from longspan.data.readers import Row, read_csv, read_fasta, read_hub
from longspan.data.splits import SPLITS, by_groups
from longspan.data.values import Fractions, Loading, gathered
from longspan.data.vocabularies import INVALID, NUCLEOTIDES


class Labelled(NamedTuple):
    """A sequence's tokens and class, and where it stands."""

    tokens: np.ndarray
    label: str
    path: str
    line: int


@dataclass(frozen=True)
class Benchmark:
    """A collection of data sets.

    Attributes:
        hub: the name of a data set on the Hub; `{}` is the data set's own.
        columns: of the sequence and of the class there.
        subset: whether the Hub's data set has the name as its configuration.
        paper: arXiv number or DOI.
        datasets: {name: longest sequence}.
    """

    hub: str
    columns: tuple[str, str]
    subset: bool
    paper: str
    datasets: Mapping[str, int]


YEAST = ("H3", "H3K14ac", "H3K36me3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K79me3", "H3K9ac", "H4", "H4ac")
BENCHMARKS: dict[str, Benchmark] = {
    "genomic_benchmarks": Benchmark(
        "katarinagresova/Genomic_Benchmarks_{}",
        ("seq", "label"),
        False,
        "10.1186/s12863-023-01123-8",
        {
            "dummy_mouse_enhancers_ensembl": 4707,
            "demo_coding_vs_intergenomic_seqs": 200,
            "demo_human_or_worm": 200,
            "human_enhancers_cohn": 500,
            "human_enhancers_ensembl": 573,
            "human_ensembl_regulatory": 802,
            "human_nontata_promoters": 251,
            "human_ocr_ensembl": 593,
            "drosophila_enhancers_stark": 3237,
        },
    ),
    "nucleotide_transformer": Benchmark(
        "InstaDeepAI/nucleotide_transformer_downstream_tasks",
        ("sequence", "label"),
        True,
        "10.1038/s41592-024-02523-z",
        {
            **dict.fromkeys(YEAST, 500),
            "enhancers": 200,
            "enhancers_types": 200,
            "promoter_all": 300,
            "promoter_no_tata": 300,
            "promoter_tata": 300,
            "splice_sites_acceptors": 600,
            "splice_sites_all": 400,
            "splice_sites_donors": 600,
        },
    ),
    "gue": Benchmark(
        "leannmlindsey/GUE",
        ("sequence", "label"),
        True,
        "2306.15006",
        {
            **{f"emp_{name}": 500 for name in YEAST},
            **{f"human_tf_{n}": 100 for n in range(5)},
            **{f"mouse_{n}": 100 for n in range(5)},
            **{f"prom_300_{kind}": 300 for kind in ("all", "notata", "tata")},
            **{f"prom_core_{kind}": 70 for kind in ("all", "notata", "tata")},
            "splice_reconstructed": 400,
            "virus_covid": 1000,
        },
    ),
}
FOLDERS = {
    "emp": "EMP",
    "human_tf": "tf",
    "mouse": "mouse",
    "prom_300": "prom",
    "prom_core": "prom",
    "splice": "splice",
    "virus": "virus",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which data set of which `benchmark`, from a folder (`path`) or the Hub (`hub`: its name there, null for the usual)."""

    benchmark: str = "genomic_benchmarks"
    dataset: str = "human_nontata_promoters"
    path: str | None = None
    hub: str | None = None

    def __post_init__(self) -> None:
        settings.choice("benchmark", self.benchmark, tuple(BENCHMARKS))
        settings.choice("dataset", self.dataset, tuple(BENCHMARKS[self.benchmark].datasets))
        settings.text_or_none("path", self.path)
        settings.text_or_none("hub", self.hub)

    @property
    def published(self) -> Benchmark:
        """The benchmark."""
        return BENCHMARKS[self.benchmark]


class GenomicBenchmarkDataModule(LabelledDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B]}: DNA sequences with one class each; see `Choice`.

    A folder (`path`) is read in the published layout:

    - genomic_benchmarks: DATASET/train/CLASS/*.txt and DATASET/test/CLASS/*.txt, a sequence a file;
    - nucleotide_transformer: DATASET/train.fna and DATASET/test.fna, the class behind the last "|" of each name;
    - gue: GROUP/DATASET/train.csv, dev.csv and test.csv with columns sequence and label, such as EMP/H3.

    Without a validation split `validation_fraction` of the training sequences is held out, equal ones together.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    def __init__(self, **keys: Any):
        default = Fractions(validation_fraction=0.1), Loading(batch_size=32, max_length=512)
        self.choice, self.splits, loading = gathered(self, keys, Choice(), *default)
        super().__init__("nucleotides", loading)

    def _labelled(self) -> dict[str, LabelledSet]:
        given = self._folder(Path(self.choice.path)) if self.choice.path else self._hub()
        self._classes(sort_classes(row.label for row in given["train"]))
        if (self.num_classes or 0) < 2:
            raise wrong_value("data.dataset", self.choice.dataset, f"has {self.num_classes} class; nothing to learn")
        number = {name: n for n, name in enumerate(self.class_names or ())}
        sets = {}
        for split, rows in given.items():
            for row in rows:
                if row.label not in number:
                    raise DataFileError(row.path, row.line, f"label {row.label!r} is on no training sequence")
            tokens = [row.tokens[: self.max_length] for row in rows]
            targets = np.array([number[row.label] for row in rows])
            cut = np.array([len(row.tokens) > self.max_length for row in rows])
            sets[split] = LabelledSet(tokens.__getitem__, targets, len(rows), cut=cut)
        if "validation" not in sets:
            pool = sets["train"]
            assert pool.targets is not None and self.splits is not None
            groups = [pool.tokens(n).tobytes() for n in range(len(pool))]
            share = self.splits.validation_fraction
            chosen = by_groups(groups, np.eye(len(number))[pool.targets], validation=share, test=0.0, seed=self.seed)
            sets |= {split: pool.only(chosen[split]) for split in ("train", "validation")}
        return {split: sets[split] for split in SPLITS}

    def _hub(self) -> dict[str, list[Labelled]]:
        benchmark, dataset = self.choice.published, self.choice.dataset
        name = self.choice.hub or benchmark.hub.format(dataset)
        subset = dataset if benchmark.subset and self.choice.hub is None else None
        found = {split: read_hub(name, subset, split) for split in ("train", "test")}
        return {split: self._rows(rows, *benchmark.columns) for split, rows in found.items()}

    def _folder(self, root: Path) -> dict[str, list[Labelled]]:
        dataset = self.choice.dataset
        if self.choice.benchmark == "genomic_benchmarks":
            return {split: list(_of_folders(_there(root / dataset / split, "folder"))) for split in ("train", "test")}
        if self.choice.benchmark == "nucleotide_transformer":
            files = {split: _there(root / dataset / f"{split}.fna", "file") for split in ("train", "test")}
            return {split: _of_fasta(file) for split, file in files.items()}
        group = next(name for name in FOLDERS if dataset.startswith(name))
        own = dataset.removeprefix(f"{group}_") if group in ("emp", "human_tf") else dataset
        own = {"splice_reconstructed": "reconstructed", "virus_covid": "covid"}.get(own, own.removeprefix("mouse_"))
        folder = _there(root / FOLDERS[group] / own, "folder")
        files = {
            split: _there(folder / f"{word}.csv", "file") for split, word in zip(SPLITS, ("train", "dev", "test"), strict=True)
        }
        return {split: self._rows(read_csv(file, ","), "sequence", "label") for split, file in files.items()}

    def _rows(self, rows: Iterable[Row], sequence: str, label: str) -> list[Labelled]:
        def read(row: Row) -> Labelled:
            tokens = encoded(row.text(sequence).encode(), row.path, row.line)
            return Labelled(tokens, str(row.get(label, "dataset")), row.path, row.line)

        return each(rows, read)

    def _given_set(self, documents: list[Any]) -> LabelledSet:
        tokens = [document.tokens[: self.max_length] for document in documents]
        cut = np.array([len(document.tokens) > self.max_length for document in documents])
        return LabelledSet(tokens.__getitem__, None, len(tokens), [document.name for document in documents], cut)

    def _load_predict(self) -> LabelledSet:
        return self._labelled()["test"]

    @property
    def to_record(self) -> dict[str, Any]:
        choice = self.choice
        source = choice.path or choice.hub or choice.published.hub.format(choice.dataset)
        return {"source": source, "benchmark": choice.benchmark, "dataset": choice.dataset, "paper": choice.published.paper}


def encoded(data: bytes, path: str | Path, line: int | None) -> np.ndarray:
    """Tokens of a sequence.

    Raises:
        DataFileError: it is empty, or a character is no base.
    """
    tokens = NUCLEOTIDES.encode_array(data)
    wrong = np.flatnonzero(tokens == INVALID)
    if wrong.size:
        raise DataFileError(path, line, f"{chr(data[int(wrong[0])])!r} (character {int(wrong[0]) + 1}) is no base")
    if not len(tokens):
        raise DataFileError(path, line, "the sequence is empty")
    return tokens.astype(np.uint8)


def _there(path: Path, kind: str) -> Path:
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        raise wrong_value("data.path", str(path), f"is no {kind}; give the folder that holds the benchmark's data sets")
    return path


def _of_folders(folder: Path) -> Iterable[Labelled]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise wrong_value("data.path", str(folder), "holds no folder a class")
    for own in classes:
        files = sorted(own.glob("*.txt"))
        if not files:
            raise DataFileError(own, None, "the class has no .txt file")
        for file in files:
            yield Labelled(encoded(read_bytes(file).strip(), file, 1), own.name, str(file), 1)


def _of_fasta(file: Path) -> list[Labelled]:
    def read(record: Any) -> Labelled:
        # The class is a part of the name, or of what follows it.
        name = f"{record.name} {record.description}".strip()
        label = name.rpartition("|")[2].strip()
        if "|" not in name or not label.isdigit():
            raise DataFileError(record.path, record.line, f"the name {name!r} does not end in |CLASS, a number")
        return Labelled(record.tokens, label, record.path, record.line)

    return each(read_fasta(file), read)
