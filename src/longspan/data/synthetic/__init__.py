"""Synthetic diagnostics: what a pattern of attention can carry, and how far.

Each asks, at known positions of made-up sequences, for something that stands a set distance back, and has that
distance and how much there is to remember as settings.
"""

from longspan.data.synthetic.associative_recall import AssociativeRecallDataModule
from longspan.data.synthetic.induction import InductionDataModule
from longspan.data.synthetic.mad import CompressionDataModule, InContextRecallDataModule, MemorisationDataModule
from longspan.data.synthetic.needle import NeedleDataModule
from longspan.data.synthetic.ruler import CommonWordsDataModule, DistractedNeedleDataModule, VariableTrackingDataModule
from longspan.data.synthetic.selective_copy import SelectiveCopyDataModule

__all__ = [
    "AssociativeRecallDataModule",
    "CommonWordsDataModule",
    "CompressionDataModule",
    "DistractedNeedleDataModule",
    "InContextRecallDataModule",
    "InductionDataModule",
    "MemorisationDataModule",
    "NeedleDataModule",
    "SelectiveCopyDataModule",
    "VariableTrackingDataModule",
]
