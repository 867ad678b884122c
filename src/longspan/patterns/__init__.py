"""Patterns: which keys each query may attend to, as values; one file a family."""

from longspan.patterns.base import Pattern
from longspan.patterns.bigbird import BigBird
from longspan.patterns.block_table import BlockTable
from longspan.patterns.compose import Intersection, Union
from longspan.patterns.errors import PatternError
from longspan.patterns.expression import parse_pattern
from longspan.patterns.fixed import Fixed
from longspan.patterns.full import Full
from longspan.patterns.global_tokens import Global
from longspan.patterns.local import Local
from longspan.patterns.local2d import Local2D
from longspan.patterns.longformer import Longformer
from longspan.patterns.per_head import PerHead
from longspan.patterns.predicate import Predicate
from longspan.patterns.random_blocks import Random
from longspan.patterns.strided import Strided
from longspan.patterns.without import Without

__all__ = [
    "BigBird",
    "BlockTable",
    "Fixed",
    "Full",
    "Global",
    "Intersection",
    "Local",
    "Local2D",
    "Longformer",
    "Pattern",
    "PatternError",
    "PerHead",
    "Predicate",
    "Random",
    "Strided",
    "Union",
    "Without",
    "parse_pattern",
]
