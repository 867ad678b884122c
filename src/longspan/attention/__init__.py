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
from longspan.attention.compressed import CompressedAttention, compressed
from longspan.attention.dilated import dilated
from longspan.attention.dsa import DeepSeekSparseAttention, dsa
from longspan.attention.fixed import fixed
from longspan.attention.full import full
from longspan.attention.gated_delta import GatedDeltaNet, gated_delta
from longspan.attention.gated_linear import GatedLinearAttention, gated_linear
from longspan.attention.global_ import global_
from longspan.attention.hybrid import hybrid
from longspan.attention.learned import LearnedAttention, learned
from longspan.attention.linear import LinearAttention, linear
from longspan.attention.linformer import Linformer, linformer
from longspan.attention.local import local
from longspan.attention.local2d import local2d
from longspan.attention.longformer import longformer
from longspan.attention.mixed_heads import MixedHeads, mixed_heads
from longspan.attention.moba import MixtureOfBlocks, moba
from longspan.attention.nsa import NativeSparseAttention, nsa
from longspan.attention.per_head import per_head
from longspan.attention.performer import Performer, performer
from longspan.attention.random import random
from longspan.attention.reformer import HashedAttention, reformer
from longspan.attention.retention import Retention, retention
from longspan.attention.routing import RoutedAttention, routing
from longspan.attention.sinkhorn import SinkhornAttention, sinkhorn
from longspan.attention.strided import strided
from longspan.attention.synthesizer import Synthesizer, synthesizer

__all__ = [
    "AdaptiveSpan",
    "CompressedAttention",
    "DeepSeekSparseAttention",
    "GatedDeltaNet",
    "GatedLinearAttention",
    "HashedAttention",
    "LearnedAttention",
    "LinearAttention",
    "Linformer",
    "MixedHeads",
    "MixtureOfBlocks",
    "NativeSparseAttention",
    "PatternAttention",
    "Performer",
    "Retention",
    "RoutedAttention",
    "SinkhornAttention",
    "Synthesizer",
    "adaptive_span",
    "bigbird",
    "block_table",
    "compressed",
    "dilated",
    "dsa",
    "fixed",
    "full",
    "gated_delta",
    "gated_linear",
    "global_",
    "hybrid",
    "learned",
    "linear",
    "linformer",
    "local",
    "local2d",
    "longformer",
    "mixed_heads",
    "moba",
    "nsa",
    "per_head",
    "performer",
    "random",
    "reformer",
    "retention",
    "routing",
    "sinkhorn",
    "strided",
    "synthesizer",
]
