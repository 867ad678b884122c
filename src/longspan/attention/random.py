"""`attention=random`: random whole blocks alone."""

from __future__ import annotations

from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
from longspan.attention.place import Place
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
        **place: Unpack[Place],
    ) -> None:
        with settings_named():
            pattern = Random(blocks, block_size, seed + place.get("layer", 0))
        super().__init__(pattern, **place)


random = RandomAttention
