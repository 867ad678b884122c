"""`attention=bigbird`: whole blocks of a window, at random and global."""

from __future__ import annotations

from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
from longspan.attention.place import Place
from longspan.patterns import BigBird


class BigBirdAttention(PatternAttention):
    """BigBird's block attention (arXiv:2007.14062); random blocks are drawn for each head, row and layer.

    Args:
        block_size: tokens a block.
        window_blocks: blocks of the window, odd, centred on the query's own.
        random_blocks: random key blocks for each query block.
        global_blocks: blocks that see and are seen by all: half at the start and half at the end, causal all at the start.
        seed: layer l draws by seed + l.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        block_size: int = 64,
        window_blocks: int = 3,
        random_blocks: int = 3,
        global_blocks: int = 2,
        seed: int = 0,
        **place: Unpack[Place],
    ) -> None:
        with settings_named():
            pattern = BigBird(block_size, window_blocks, random_blocks, global_blocks, seed + place.get("layer", 0))
        super().__init__(pattern, **place)


bigbird = BigBirdAttention
