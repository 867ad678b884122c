"""`attention=fixed`: the query's own block and the last columns of every block, the fixed pattern of Sparse Transformer."""

from __future__ import annotations

from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
from longspan.attention.place import Place
from longspan.patterns import Fixed


class FixedAttention(PatternAttention):
    """The query's own block of tokens, and the last tokens of every block (arXiv:1904.10509).

    Args:
        stride: tokens a block.
        summary: tokens at the end of each block that every query sees.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        stride: int = 128,
        summary: int = 16,
        **place: Unpack[Place],
    ) -> None:
        with settings_named():
            pattern = Fixed(stride, summary)
        super().__init__(pattern, **place)


fixed = FixedAttention
