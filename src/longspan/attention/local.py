"""`attention=local`: a sliding window."""

from __future__ import annotations

from longspan.attention.variant import Place, variant
from longspan.patterns import Local, Pattern


@variant("local")
def local(place: Place, *, window: int = 256) -> Pattern:
    """A sliding window (arXiv:2004.05150): causal `window` keys up to the query, both ways window // 2 on each side."""
    return Local(window)
