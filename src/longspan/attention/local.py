"""`attention=local`: a sliding window."""

from __future__ import annotations

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
from longspan.patterns import Local


class LocalAttention(PatternAttention):
    """A sliding window (arXiv:2004.05150).

    Args:
        window: keys a query sees: causal the last `window`, both ways window // 2 on each side and itself.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        window: int = 256,
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
            pattern = Local(window)
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


local = LocalAttention
