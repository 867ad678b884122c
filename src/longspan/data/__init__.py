"""Data: LightningDataModules over texts, sequences with classes, and genomes with genes, made-up sequences with questions."""

from longspan.data.classification import SequenceClassificationDataModule
from longspan.data.errors import DataConfigError, DataFileError, ResumeError
from longspan.data.labelling import TokenLabellingDataModule
from longspan.data.synthetic import (
    AssociativeRecallDataModule,
    InductionDataModule,
    NeedleDataModule,
    SelectiveCopyDataModule,
)
from longspan.data.text import GenomeDataModule, TextDataModule
from longspan.data.vocabulary import BYTES, NUCLEOTIDES, Vocabulary

__all__ = [
    "BYTES",
    "NUCLEOTIDES",
    "AssociativeRecallDataModule",
    "DataConfigError",
    "DataFileError",
    "GenomeDataModule",
    "InductionDataModule",
    "NeedleDataModule",
    "ResumeError",
    "SelectiveCopyDataModule",
    "SequenceClassificationDataModule",
    "TextDataModule",
    "TokenLabellingDataModule",
    "Vocabulary",
]
