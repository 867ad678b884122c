"""Data: LightningDataModules over texts, sequences with classes, and genomes with genes; readers and vocabularies."""

from longspan.data.classification import SequenceClassificationDataModule
from longspan.data.errors import DataConfigError, DataFileError, ResumeError
from longspan.data.labelling import TokenLabellingDataModule
from longspan.data.text import GenomeDataModule, TextDataModule
from longspan.data.vocabulary import BYTES, NUCLEOTIDES, Vocabulary

__all__ = [
    "BYTES",
    "NUCLEOTIDES",
    "DataConfigError",
    "DataFileError",
    "GenomeDataModule",
    "ResumeError",
    "SequenceClassificationDataModule",
    "TextDataModule",
    "TokenLabellingDataModule",
    "Vocabulary",
]
