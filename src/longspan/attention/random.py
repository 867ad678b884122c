"""`attention=random`: random whole blocks alone."""

from __future__ import annotations

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
from longspan.patterns import Random


class RandomAttention(PatternAttention):
    """Each query block sees random key blocks (arXiv:2007.14062), drawn for each head, row and layer.

    Args:
        blocks: key blocks a query block sees.
        block_size: tokens a block.
        seed: layer l draws by seed + l.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        blocks: int = 3,
        block_size: int = 64,
        seed: int = 0,
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
            pattern = Random(blocks, block_size, seed + layer)
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


random = RandomAttention
