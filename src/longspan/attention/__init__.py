"""Attention variants: what `attention=NAME` chooses, all with one signature.

module(q [B, H, T, D], k, v [B, Hkv, T, D], *, lengths=None, segments=None) -> [B, H, T, D]
module.cost(length) -> Cost

NAME.py holds the variant NAME. Here NAME is the callable that a config names in `_target_`, so `longspan.attention.local`
builds a module, and `from longspan.attention.local import ...` reads the file.
"""

from longspan.attention.adaptive_span import AdaptiveSpan, adaptive_span
from longspan.attention.base import PatternAttention
from longspan.attention.bigbird import bigbird
from longspan.attention.block_table import block_table
from longspan.attention.dilated import dilated
from longspan.attention.dsa import DeepSeekSparseAttention, dsa
from longspan.attention.errors import AttentionConfigError
from longspan.attention.fixed import fixed
from longspan.attention.full import full
from longspan.attention.global_ import global_
from longspan.attention.learned import LearnedAttention, learned
from longspan.attention.local import local
from longspan.attention.longformer import longformer
from longspan.attention.moba import MixtureOfBlocks, moba
from longspan.attention.nsa import NativeSparseAttention, nsa
from longspan.attention.per_head import per_head
from longspan.attention.random import random
from longspan.attention.reformer import HashedAttention, reformer
from longspan.attention.routing import RoutedAttention, routing
from longspan.attention.sinkhorn import SinkhornAttention, sinkhorn
from longspan.attention.strided import strided

__all__ = [
    "AdaptiveSpan",
    "AttentionConfigError",
    "DeepSeekSparseAttention",
    "HashedAttention",
    "LearnedAttention",
    "MixtureOfBlocks",
    "NativeSparseAttention",
    "PatternAttention",
    "RoutedAttention",
    "SinkhornAttention",
    "adaptive_span",
    "bigbird",
    "block_table",
    "dilated",
    "dsa",
    "fixed",
    "full",
    "global_",
    "learned",
    "local",
    "longformer",
    "moba",
    "nsa",
    "per_head",
    "random",
    "reformer",
    "routing",
    "sinkhorn",
    "strided",
]
