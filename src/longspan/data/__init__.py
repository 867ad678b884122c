"""Data: LightningDataModules over texts, sequences with classes, and genomes with genes, made-up sequences with questions.

The modules are loaded on first use, so that looking at a file's path loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longspan.data.classification import SequenceClassificationDataModule
    from longspan.data.dnalongbench.activity import RegulatoryActivityDataModule
    from longspan.data.dnalongbench.contacts import ContactMapDataModule
    from longspan.data.dnalongbench.initiation import TranscriptionInitiationDataModule
    from longspan.data.dnalongbench.module import DNALongBenchDataModule
    from longspan.data.errors import DataFileError
    from longspan.data.genomics import GenomicBenchmarkDataModule
    from longspan.data.images.module import ImageClassificationDataModule
    from longspan.data.images.shapes import ShapesDataModule
    from longspan.data.labelling import TokenLabellingDataModule
    from longspan.data.large_text import LargeTextDataModule
    from longspan.data.lra.listops_data import ListOpsDataModule
    from longspan.data.lra.pathfinder_data import PathfinderDataModule
    from longspan.data.lra.retrieval import RetrievalDataModule
    from longspan.data.pairs import PairedDataModule
    from longspan.data.regression import SequenceRegressionDataModule
    from longspan.data.species import SpeciesDataModule
    from longspan.data.streamed import StreamedClassificationDataModule, StreamedTextDataModule
    from longspan.data.synthetic import (
        AssociativeRecallDataModule,
        CommonWordsDataModule,
        CompressionDataModule,
        DistractedNeedleDataModule,
        InContextRecallDataModule,
        InductionDataModule,
        MemorisationDataModule,
        NeedleDataModule,
        SelectiveCopyDataModule,
        VariableTrackingDataModule,
    )
    from longspan.data.text import GenomeDataModule, TextDataModule
    from longspan.data.values import Loading, Source, Splits
    from longspan.data.vocabularies import BYTES, NUCLEOTIDES, Vocabulary

__all__ = [
    "BYTES",
    "NUCLEOTIDES",
    "AssociativeRecallDataModule",
    "CommonWordsDataModule",
    "CompressionDataModule",
    "ContactMapDataModule",
    "DNALongBenchDataModule",
    "DataFileError",
    "DistractedNeedleDataModule",
    "GenomeDataModule",
    "GenomicBenchmarkDataModule",
    "ImageClassificationDataModule",
    "InContextRecallDataModule",
    "InductionDataModule",
    "LargeTextDataModule",
    "ListOpsDataModule",
    "Loading",
    "MemorisationDataModule",
    "NeedleDataModule",
    "PairedDataModule",
    "PathfinderDataModule",
    "RegulatoryActivityDataModule",
    "RetrievalDataModule",
    "SelectiveCopyDataModule",
    "SequenceClassificationDataModule",
    "SequenceRegressionDataModule",
    "ShapesDataModule",
    "Source",
    "SpeciesDataModule",
    "Splits",
    "StreamedClassificationDataModule",
    "StreamedTextDataModule",
    "TextDataModule",
    "TokenLabellingDataModule",
    "TranscriptionInitiationDataModule",
    "VariableTrackingDataModule",
    "Vocabulary",
]
_WHERE = {
    "GenomicBenchmarkDataModule": "genomics",
    "DNALongBenchDataModule": "dnalongbench.module",
    "RegulatoryActivityDataModule": "dnalongbench.activity",
    "ContactMapDataModule": "dnalongbench.contacts",
    "TranscriptionInitiationDataModule": "dnalongbench.initiation",
    "CompressionDataModule": "synthetic",
    "MemorisationDataModule": "synthetic",
    "InContextRecallDataModule": "synthetic",
    "CommonWordsDataModule": "synthetic",
    "VariableTrackingDataModule": "synthetic",
    "DistractedNeedleDataModule": "synthetic",
    "RetrievalDataModule": "lra.retrieval",
    "PathfinderDataModule": "lra.pathfinder_data",
    "ListOpsDataModule": "lra.listops_data",
    "ImageClassificationDataModule": "images.module",
    "ShapesDataModule": "images.shapes",
    "AssociativeRecallDataModule": "synthetic",
    "InductionDataModule": "synthetic",
    "NeedleDataModule": "synthetic",
    "SelectiveCopyDataModule": "synthetic",
    "SequenceClassificationDataModule": "classification",
    "DataFileError": "errors",
    "TokenLabellingDataModule": "labelling",
    "GenomeDataModule": "text",
    "SpeciesDataModule": "species",
    "StreamedTextDataModule": "streamed",
    "StreamedClassificationDataModule": "streamed",
    "TextDataModule": "text",
    "Loading": "values",
    "SequenceRegressionDataModule": "regression",
    "Source": "values",
    "Splits": "values",
    "PairedDataModule": "pairs",
    "LargeTextDataModule": "large_text",
    "BYTES": "vocabularies",
    "NUCLEOTIDES": "vocabularies",
    "Vocabulary": "vocabularies",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"longspan.data.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'longspan.data' has no attribute {name!r}; its public names are {__all__}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
