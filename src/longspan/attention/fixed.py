"""`attention=fixed`: the query's own block and the last columns of every block, the fixed pattern of Sparse Transformer."""

from __future__ import annotations

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
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
        dropout: float = 0.0,
        backend: str = "auto",
        heads: int,
        head_dim: int,
        causal: bool,
        kv_heads: int | None = None,
        layer: int = 0,
        max_length: int | None = None,
    ) -> None:
        with settings_named():
            pattern = Fixed(stride, summary)
        super().__init__(
            pattern,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            causal=causal,
            max_length=max_length,
            dropout=dropout,
            backend=backend,
        )


fixed = FixedAttention
