"""`attention=local`: a sliding window."""

from __future__ import annotations

from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
from longspan.attention.place import Place
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
        **place: Unpack[Place],
    ) -> None:
        with settings_named():
            pattern = Local(window)
        super().__init__(pattern, **place)


local = LocalAttention
