"""DNALongBench as a data module: regions and genes far away from them, and variants of which alleles are compared.

Legend: B batch, T = `max_length`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longspan.config.errors import wrong_value
from longspan.data import settings
from longspan.data.batches import PairCollate
from longspan.data.dnalongbench.layout import Layout
from longspan.data.dnalongbench.pairs import (
    ALLELES,
    COLUMNS,
    SUBSETS,
    TARGETS,
    Pair,
    PairReader,
    PairSequences,
    read_spans,
    records_of,
)
from longspan.data.encoded_genomes import EncodedGenome, encoded
from longspan.data.errors import DataFileError, each
from longspan.data.labelled import LabelledDataModule, LabelledSet
from longspan.data.readers import Row, read_csv
from longspan.data.values import Loading, gathered
from longspan.data.vocabularies import NUCLEOTIDES

PAPER = "2501.01945"
TISSUES = (
    *("Adipose_Subcutaneous", "Artery_Tibial", "Cells_Cultured_fibroblasts", "Muscle_Skeletal", "Nerve_Tibial"),
    *("Skin_Not_Sun_Exposed_Suprapubic", "Skin_Sun_Exposed_Lower_leg", "Thyroid", "Whole_Blood"),
)


class Parts(NamedTuple):
    """Where a data set lies: its folder and config, and the keys of that which name the table of pairs and what is masked."""

    folder: str
    config: str
    table: str
    others: str
    task: str


DATASETS = {
    "enhancer_target_gene": Parts(
        "enhancer_target_gene",
        "config/CRISPRi_EPI_K562_hg19.config",
        "EPI_file",
        "enhancer_tabix_file",
        "sequence_classification",
    ),
    "eqtl": Parts("eQTL", "config/gtex_hg38.{tissue}.config", "eQTL_file", "eQTL_tabix_file", "pair_classification"),
}


class DNALongBenchDataModule(LabelledDataModule):
    """{"tokens": [B, T], "lengths": [B], "labels": [B]}: a gene's start, a region, all between them; does one act on the other?

    `path` holds `enhancer_target_gene/config/CRISPRi_EPI_K562_hg19.config`, or of `dataset` "eqtl" `eQTL/config/` and a
    config a `tissue`. It names a genome, a table of pairs and a BED. A sequence runs from the gene's start (TSS) with its
    flanks to the region with its own, as in the paper: what the BED has between the two is N, as is what lies beyond the
    chromosome, and a gene that begins downstream of the region's flank is read from the other strand, so that it comes first.
    Sequences longer than `max_length` or than the config's `seq_len_cutoff` keep their head. Pairs on two chromosomes, of a
    gene on no strand, or further apart than `seq_len_cutoff` are left out, counted and printed. Splits are the table's.

    Of "eqtl" the region is a variant, and "tokens" and "lengths" have 2 B rows: rows 2n and 2n + 1 are sequence n with either
    allele.

    Raises:
        ConfigError: an argument cannot be used; the message names `data.<key>`, the value and the fix.
    """

    def __init__(
        self, *, path: str | None = None, dataset: str = "enhancer_target_gene", tissue: str = TISSUES[-1], **keys: Any
    ):
        (loading,) = gathered(self, keys, Loading(batch_size=1, max_length=450_000))
        super().__init__("nucleotides", loading)
        self.path = settings.text_or_none("path", path)
        self.dataset = settings.choice("dataset", dataset, tuple(DATASETS))
        self.tissue = settings.choice("tissue", tissue, TISSUES)
        self.of_alleles = self.dataset == "eqtl"
        self._classes(list(TARGETS))
        self._found: dict[str, LabelledSet] = {}

    @property
    def tasks(self) -> tuple[str, ...]:  # type: ignore[override]
        return (DATASETS[self.dataset].task,)

    def _labelled(self) -> dict[str, LabelledSet]:
        if not self._found:  # read once, so that what is left out is counted once
            self._found = self._read()
        return self._found

    def _read(self) -> dict[str, LabelledSet]:
        parts = DATASETS[self.dataset]
        if self.path is None:
            raise wrong_value("data.path", None, f"give the folder of DNALongBench's data, which holds {parts.folder}/")
        folder = Path(self.path).expanduser() / parts.folder
        config = folder / parts.config.format(tissue=self.tissue)
        if not config.is_file():
            raise wrong_value("data.path", self.path, f"{config} is no file; give the folder that holds {parts.folder}/")
        layout = Layout.read(config, folder, ("genome_fa", parts.table, parts.others))
        rows = read_csv(layout.files[parts.table], "\t")
        columns = (*COLUMNS, *ALLELES) if self.of_alleles else COLUMNS
        if missing := [column for column in columns if column not in rows[0].values]:
            raise DataFileError(rows[0].path, 1, f"no column {missing[0]!r}; it needs {', '.join(columns)}")
        genome = encoded([(layout.files["genome_fa"], "fasta")], NUCLEOTIDES)
        others = read_spans(layout.files[parts.others], records_of(genome))
        read = PairReader(layout, genome, others, variants=self.of_alleles)
        pairs: dict[str, list[Pair]] = {split: [] for split in SUBSETS.values()}
        left: dict[str, list[Row]] = defaultdict(list)
        for found in each(rows, read):
            if isinstance(found, Pair):
                pairs[found.split].append(found)
            else:
                left[found.reason].append(found.row)
        for reason, those in left.items():
            self.dropped.add(reason, len(those), f"{those[0].path}, line {those[0].line}")
        for subset, split in SUBSETS.items():
            if not pairs[split]:
                raise DataFileError(layout.files[parts.table], None, f"no pair of subset {subset!r} is there or fits")
        longest = min(self.max_length, layout.sizes["seq_len_cutoff"])
        return {split: self._set(genome, own, longest) for split, own in pairs.items()}

    def _set(self, genome: EncodedGenome, pairs: Sequence[Pair], longest: int) -> LabelledSet:
        targets = np.array([pair.target for pair in pairs], dtype=np.int64)
        sequences = PairSequences(genome, pairs, longest)
        read: Any = sequences.of_alleles if self.of_alleles else sequences
        cut = np.array([pair.end - pair.begin > longest for pair in pairs])
        return LabelledSet(read, targets, len(pairs), [pair.name for pair in pairs], cut)

    def _options(self, names: bool = False) -> dict[str, Any]:
        options = super()._options(names)
        if self.of_alleles:
            options["collate_fn"] = PairCollate(self.max_length, self.vocabulary.pad_id, self.pad_to_multiple)
        return options

    def _given_set(self, documents: list[Any]) -> LabelledSet:
        if self.of_alleles:
            raise wrong_value("sequences", None, "eqtl compares two alleles of a table of variants; it reads no sequences")
        tokens = [document.tokens[: self.max_length] for document in documents]
        return LabelledSet(tokens.__getitem__, None, len(tokens), [document.name for document in documents])

    def _load_predict(self) -> LabelledSet:
        return self._labelled()["test"]

    @property
    def to_record(self) -> dict[str, Any]:
        own = {"tissue": self.tissue} if self.of_alleles else {}
        return {"source": self.path, "benchmark": "dnalongbench", "dataset": self.dataset, **own, "paper": PAPER}

    def describe(self) -> dict[str, Any]:
        """Where the data is from, of each split the pairs of each class, and how many pairs are left out and why."""
        record = super().describe()
        return {**record, "left_out": json.loads(json.dumps(self.dropped.counts))} if self.dropped.counts else record
