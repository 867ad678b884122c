"""`attention=longformer`: a sliding window and a few global tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
from longspan.attention.place import Place
from longspan.patterns import Longformer


class LongformerAttention(PatternAttention):
    """A sliding window and global tokens (arXiv:2004.05150), one set of projections for both.

    Args:
        window: keys of the window, as in `local`.
        global_positions: tokens that see and are seen by all; those past the length are ignored.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        window: int = 256,
        global_positions: Sequence[int] = (0,),
        **place: Unpack[Place],
    ) -> None:
        with settings_named():
            pattern = Longformer(window, global_positions)
        super().__init__(pattern, **place)


longformer = LongformerAttention
