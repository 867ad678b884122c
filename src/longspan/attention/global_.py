"""`attention=global`: a few tokens that see and are seen by all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named, wrong_setting
from longspan.attention.place import Place
from longspan.patterns import Global


class GlobalAttention(PatternAttention):
    """Global tokens alone (arXiv:2004.05150, arXiv:2007.14062).

    Args:
        first: the first `first` tokens are global; None where `positions` is given.
        positions: these tokens are; those past the length are ignored.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        first: int | None = 64,
        positions: Sequence[int] | None = None,
        **place: Unpack[Place],
    ) -> None:
        if (first is None) == (positions is None):
            given = "neither is given" if first is None else f"= {first} and attention.positions = {list(positions or [])}"
            raise wrong_setting("first", f"{given}; give one of first and positions, and null for the other")
        with settings_named():
            pattern = Global(first=first, positions=positions)
        super().__init__(pattern, **place)


global_ = GlobalAttention
