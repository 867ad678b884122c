"""Tasks that models are trained for, as LightningModules."""

from longspan.tasks.base import Task
from longspan.tasks.build import build_task, data_facts, task_class
from longspan.tasks.compression import Compression
from longspan.tasks.errors import NonFiniteLossError
from longspan.tasks.language_modelling import LanguageModelling
from longspan.tasks.masked_modelling import MaskedModelling
from longspan.tasks.optimizers import adamw, decay_groups, undecayed_names
from longspan.tasks.pair_classification import PairClassification
from longspan.tasks.recall import Recall
from longspan.tasks.schedules import warmup_constant, warmup_cosine
from longspan.tasks.sequence_classification import SequenceClassification
from longspan.tasks.sequence_regression import SequenceRegression
from longspan.tasks.sequence_to_sequence import SequenceToSequence
from longspan.tasks.token_labelling import TokenLabelling
from longspan.tasks.track_regression import ContactRegression, TrackRegression

__all__ = [
    "Compression",
    "ContactRegression",
    "LanguageModelling",
    "MaskedModelling",
    "NonFiniteLossError",
    "PairClassification",
    "Recall",
    "SequenceClassification",
    "SequenceRegression",
    "SequenceToSequence",
    "Task",
    "TokenLabelling",
    "TrackRegression",
    "adamw",
    "build_task",
    "data_facts",
    "decay_groups",
    "task_class",
    "undecayed_names",
    "warmup_constant",
    "warmup_cosine",
]
