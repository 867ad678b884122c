"""`attention=dilated`: a sliding window with gaps in some heads."""

from __future__ import annotations

from longspan.attention.errors import AttentionConfigError
from longspan.attention.variant import Place, variant
from longspan.patterns import Local, Pattern, PerHead


@variant("dilated")
def dilated(place: Place, *, window: int = 128, dilation: int = 4, dilated_heads: int | None = None) -> Pattern:
    """A window with gaps in some heads, and without them in the others, as in Longformer (arXiv:2004.05150).

    With gaps in every head, tokens of different residues of `dilation` would never meet.

    Args:
        window: keys a query sees.
        dilation: tokens from one of them to the next.
        dilated_heads: how many of the last heads have gaps; null for half of them (all, where there is one head).
    """
    gaps, plain = Local(window, dilation), Local(window)
    if dilated_heads is None:
        dilated_heads = place.heads - place.heads // 2
    if isinstance(dilated_heads, bool) or not isinstance(dilated_heads, int) or not 0 <= dilated_heads <= place.heads:
        raise AttentionConfigError("dilated_heads", f"= {dilated_heads!r}; give 0 to {place.heads}, the number of heads")
    if dilated_heads in (0, place.heads):
        return gaps if dilated_heads else plain
    return PerHead([plain] * (place.heads - dilated_heads) + [gaps] * dilated_heads)
