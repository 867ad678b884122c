"""`attention=local`, `attention=dilated` and `attention=longformer`: sliding windows."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.attention.errors import AttentionConfigError
from longspan.attention.variant import Place, variant
from longspan.patterns import Local, Longformer, Pattern, PerHead


@variant("local")
def local(place: Place, *, window: int = 256) -> Pattern:
    """A sliding window (arXiv:2004.05150): causal `window` keys up to the query, both ways window // 2 on each side."""
    return Local(window)


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


@variant("longformer")
def longformer(place: Place, *, window: int = 256, global_positions: Sequence[int] = (0,)) -> Pattern:
    """A sliding window and global tokens (arXiv:2004.05150), one set of projections for both.

    Args:
        window: keys of the window, as in `local`.
        global_positions: tokens that see and are seen by all; those past the length are ignored.
    """
    return Longformer(window, global_positions)
