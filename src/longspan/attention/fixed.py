"""`attention=fixed`: the query's own block and the last columns of every block, the fixed pattern of Sparse Transformer."""

from __future__ import annotations

from longspan.attention.variant import Place, variant
from longspan.patterns import Fixed, Pattern


@variant("fixed")
def fixed(place: Place, *, stride: int = 128, summary: int = 16) -> Pattern:
    """The query's own block of `stride` tokens, and the last `summary` tokens of every block (arXiv:1904.10509)."""
    return Fixed(stride, summary)
