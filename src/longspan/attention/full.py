"""`attention=full`: every pair, the yardstick of the others."""

from __future__ import annotations

from longspan.attention.variant import Place, variant
from longspan.patterns import Full, Pattern


@variant("full")
def full(place: Place) -> Pattern:
    """Every query sees every key (arXiv:1706.03762)."""
    return Full()
