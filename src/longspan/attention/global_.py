"""`attention=global`: a few tokens that see and are seen by all."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.attention.errors import AttentionConfigError
from longspan.attention.variant import Place, variant
from longspan.patterns import Global, Pattern


@variant("global")
def global_(place: Place, *, first: int | None = 64, positions: Sequence[int] | None = None) -> Pattern:
    """Global tokens alone (arXiv:2004.05150, arXiv:2007.14062).

    Args:
        first: the first `first` tokens are global; null where `positions` is given.
        positions: these tokens are; those past the length are ignored.
    """
    if (first is None) == (positions is None):
        given = "neither is given" if first is None else f"= {first} and attention.positions = {list(positions or [])}"
        raise AttentionConfigError("first", f"{given}; give one of first and positions, and null for the other")
    return Global(first=first, positions=positions)
