"""`attention=full`: every pair, the yardstick of the others."""

from __future__ import annotations

from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.place import Place
from longspan.patterns import Full


class FullAttention(PatternAttention):
    """Every query sees every key (arXiv:1706.03762)."""

    def __init__(
        self,
        **place: Unpack[Place],
    ) -> None:
        super().__init__(Full(), **place)


full = FullAttention
