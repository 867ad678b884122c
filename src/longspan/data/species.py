"""Windows of genomes labelled by species: a file or a folder of FASTA is a species.

Legend: B batch, T = `max_length`, K species. The task is HyenaDNA's (2306.15794, section 4.4).
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from longspan.config.errors import wrong_value
from longspan.data.baselines import class_baselines
from longspan.data.classification import Example, SequenceClassificationDataModule
from longspan.data.corpus import Corpus, Region, cut_windows, spread
from longspan.data.drawn_windows import Drawing, RandomWindows
from longspan.data.encoded_genomes import AUTO, MappedDocuments, Storage, encoded
from longspan.data.files import list_files
from longspan.data.sources import Document
from longspan.data.splits import SPLITS, by_chromosome
from longspan.data.values import Source, Splits, gathered

HELD_OUT_WINDOWS = 128  # of each species, where nothing else is said


class DrawnOfClasses(Dataset):
    """Training windows: each of a species drawn evenly, and of a place in it; a function of (seed, index) alone."""

    endless = True

    def __init__(self, genomes: list[RandomWindows], seed: int, size: int):
        self.genomes, self.seed, self.size = genomes, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        species = int(np.random.default_rng([self.seed, 0x5BEC, index]).integers(len(self.genomes)))
        return {**self.genomes[species][index], "target": np.int64(species)}


class HeldOutWindows(Dataset):
    """Windows in their places, [W, 3] (document, start, length), with the species of each, [W]."""

    def __init__(self, corpus: Corpus, windows: np.ndarray, targets: np.ndarray):
        self.corpus, self.windows, self.targets = corpus, windows, targets

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        document, start, length = (int(value) for value in self.windows[index])
        begin = int(self.corpus.offsets[document]) + start
        tokens = self.corpus.tokens[begin : begin + length]
        return {"tokens": tokens, "id": self.corpus.names[document], "start": start, "target": self.targets[index]}


class SpeciesDataModule(SequenceClassificationDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B] int64}: windows of T bases, and which genome each is from.

    `path`: a folder with a FASTA a species, or a folder a species. Of each species the last shares of its records laid end
    to end are held out, or whole records by name, so that no window of training overlaps one that is tested. Training
    draws `epoch_windows` windows an epoch, every species and every start alike likely; validation and test have up to
    `max_validation_windows` and `max_test_windows` side by side, in even parts of every species.
    `memory_mapped`: see `Storage`.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    source: Source = Source(vocabulary="nucleotides")
    splits: Splits = Splits()
    bundled: ClassVar[dict[str, str]] = {}

    def __init__(self, *values: Any, epoch_windows: int = 4096, memory_mapped: bool | str = AUTO, **keys: Any):
        super().__init__(*values, **keys)
        given = {"epoch_windows": epoch_windows, "windows": "random", "memory_mapped": memory_mapped}
        self.drawing, self.storage = gathered(self, given, Drawing(), Storage())
        self._mapped: Corpus | None = None
        if self.source.path is None:
            raise wrong_value("data.path", None, "name a folder with a FASTA or a folder a species")

    def _load(self) -> dict[str, Dataset]:
        documents = self._labelled_documents("path", str(self.source.path))
        examples = self._label(documents)
        self._set_classes(self._classes(examples))
        corpus = self._mapped or Corpus.build([d.tokens for d in documents], [d.name for d in documents], self.vocabulary)
        regions = [self._regions(name, documents, examples) for name in self.class_names or ()]
        size = self.limits["train"] or self.drawing.epoch_windows
        genomes = [
            RandomWindows(corpus, parts["train"], self.max_length, self.seed, size=size, endless=self.limits["train"] is None)
            for parts in regions
        ]
        sets: dict[str, Dataset] = {"train": DrawnOfClasses(genomes, self.seed, size)}
        self._targets["train"] = np.arange(len(regions))  # all alike likely
        for split in ("validation", "test"):
            sets[split] = self._held_out(split, corpus, [parts[split] for parts in regions])
        return sets

    def _documents(self, key: str, path: str) -> list[Document]:
        files = list_files(key, path, self.source.format)
        if not self.storage.maps(files):
            return super()._documents(key, path)
        documents = MappedDocuments(encoded(files, self.reading, prefixed=True))
        self._mapped = documents.corpus
        return documents

    def _group(self, document: Document) -> str | bytes:
        return document.name  # held out are parts of records; their bases need not be looked at

    def _regions(self, name: str, documents: list[Document], examples: list[Example]) -> dict[str, list[Region]]:
        """Parts of one species' records for each split; documents are numbered over all species."""
        own = [index for index, example in enumerate(examples) if example.labels == (name,)]
        # a record's own name, without the file that tells it from others of that name
        ids = [str(documents[index].row.values["id"]) for index in own]
        sizes = [len(documents[index].tokens) for index in own]
        shares = self.splits.validation_fraction, self.splits.test_fraction
        parts = by_chromosome(ids, sizes, self.splits, *shares)
        for split in SPLITS:
            if not parts[split]:
                raise wrong_value("data.path", self.source.path, f"{name} has nothing for the {split} split; give more of it")
        return {split: [(own[record], begin, end) for record, begin, end in parts[split]] for split in SPLITS}

    def _held_out(self, split: str, corpus: Corpus, regions: list[list[Region]]) -> HeldOutWindows:
        limit = self.limits[split]
        each = HELD_OUT_WINDOWS if limit is None else max(1, limit // len(regions))
        windows = [spread(cut_windows(parts, self.max_length, self.max_length), each) for parts in regions]
        self._targets[split] = np.repeat(np.arange(len(windows)), [len(part) for part in windows])
        return HeldOutWindows(corpus, np.concatenate(windows), self._targets[split])

    def baselines(self, split: str = "test") -> dict[str, float]:
        """Scores of always answering with one species, those of a split's windows."""
        self.split(split)
        counts = np.bincount(self._targets["validation" if split == "val" else split], minlength=self.num_classes or 0)
        return class_baselines(np.ones(self.num_classes or 0), counts)

    def describe(self) -> dict[str, Any]:
        """Source, species, and of each split the windows and how many are of each species."""
        record: dict[str, Any] = {
            "source": str(self.source),
            "vocabulary": self.vocabulary.name,
            "max_length": self.max_length,
            "split": "position, in every species",
        }
        for split in SPLITS:
            record[split] = {"windows": len(self.split(split))}  # type: ignore[arg-type]
            if split != "train":
                counts = np.bincount(self._targets[split], minlength=self.num_classes or 0)
                record[split]["classes"] = dict(zip(self.class_names or (), counts.tolist(), strict=True))
        return json.loads(json.dumps(record))
