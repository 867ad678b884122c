"""`attention=random`: random whole blocks alone."""

from __future__ import annotations

from longspan.attention.variant import Place, variant
from longspan.patterns import Pattern, Random


@variant("random")
def random(place: Place, *, blocks: int = 3, block_size: int = 64, seed: int = 0) -> Pattern:
    """Each query block sees `blocks` random key blocks (arXiv:2007.14062), drawn for each head, row and layer."""
    return Random(blocks, block_size, seed + place.layer)
