"""Data: LightningDataModules over texts, sequences with classes, and genomes with genes, made-up sequences with questions.

The modules are loaded on first use, so that looking at a file's path loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longspan.data.classification import SequenceClassificationDataModule
    from longspan.data.errors import DataConfigError, DataFileError, ResumeError
    from longspan.data.labelling import TokenLabellingDataModule
    from longspan.data.regression import SequenceRegressionDataModule
    from longspan.data.synthetic import (
        AssociativeRecallDataModule,
        InductionDataModule,
        NeedleDataModule,
        SelectiveCopyDataModule,
    )
    from longspan.data.text import GenomeDataModule, TextDataModule
    from longspan.data.values import Loading, Source, Splits
    from longspan.data.vocabulary import BYTES, NUCLEOTIDES, Vocabulary

__all__ = [
    "BYTES",
    "NUCLEOTIDES",
    "AssociativeRecallDataModule",
    "DataConfigError",
    "DataFileError",
    "GenomeDataModule",
    "InductionDataModule",
    "Loading",
    "NeedleDataModule",
    "ResumeError",
    "SelectiveCopyDataModule",
    "SequenceClassificationDataModule",
    "SequenceRegressionDataModule",
    "Source",
    "Splits",
    "TextDataModule",
    "TokenLabellingDataModule",
    "Vocabulary",
]
_WHERE = {
    "AssociativeRecallDataModule": "synthetic", "InductionDataModule": "synthetic", "NeedleDataModule": "synthetic",
    "SelectiveCopyDataModule": "synthetic", "SequenceClassificationDataModule": "classification", "DataConfigError": "errors",
    "DataFileError": "errors", "ResumeError": "errors", "TokenLabellingDataModule": "labelling", "GenomeDataModule": "text",
    "TextDataModule": "text", "Loading": "values",
    "SequenceRegressionDataModule": "regression",
    "Source": "values", "Splits": "values", "BYTES": "vocabulary", "NUCLEOTIDES": "vocabulary", "Vocabulary": "vocabulary",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"longspan.data.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'longspan.data' has no attribute {name!r}; its public names are {__all__}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
