"""Attention variants: what `attention=NAME` chooses, all with one signature.

module(q [B, H, T, D], k, v [B, Hkv, T, D], *, lengths=None, segments=None) -> [B, H, T, D]
module.cost(length) -> Cost
"""

from longspan.attention.adaptive_spans import AdaptiveSpan, adaptive_span
from longspan.attention.base import PatternAttention
from longspan.attention.big_bird import bigbird, random
from longspan.attention.dense import full
from longspan.attention.errors import AttentionConfigError
from longspan.attention.global_tokens import global_
from longspan.attention.hashed_attention import HashedAttention, reformer
from longspan.attention.learned_gates import LearnedAttention, learned
from longspan.attention.mixed_heads import per_head
from longspan.attention.mixture_of_blocks import MixtureOfBlocks, moba
from longspan.attention.native_sparse import NativeSparseAttention, nsa
from longspan.attention.routed_clusters import RoutedAttention, routing
from longspan.attention.sinkhorn_matching import SinkhornAttention, sinkhorn
from longspan.attention.sparse_transformer import fixed, strided
from longspan.attention.tables import block_table
from longspan.attention.windows import dilated, local, longformer

__all__ = [
    "AdaptiveSpan",
    "AttentionConfigError",
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
