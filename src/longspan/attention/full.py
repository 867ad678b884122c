"""`attention=full`: every pair, the yardstick of the others."""

from __future__ import annotations

from longspan.attention.base import PatternAttention
from longspan.patterns import Full


class FullAttention(PatternAttention):
    """Every query sees every key (arXiv:1706.03762)."""

    def __init__(
        self,
        *,
        dropout: float = 0.0,
        backend: str = "auto",
        heads: int,
        head_dim: int,
        causal: bool,
        kv_heads: int | None = None,
        layer: int = 0,
        max_length: int | None = None,
    ) -> None:
        pattern = Full()
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


full = FullAttention
