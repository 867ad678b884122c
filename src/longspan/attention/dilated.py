"""`attention=dilated`: a sliding window with gaps in some heads."""

from __future__ import annotations

from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named, wrong_setting
from longspan.attention.place import Place
from longspan.patterns import Local, Pattern, PerHead
from longspan.values import is_whole


class DilatedAttention(PatternAttention):
    """A window with gaps in some heads, and without them in the others, as in Longformer (arXiv:2004.05150).

    With gaps in every head, tokens of different residues of `dilation` would never meet.

    Args:
        window: keys a query sees.
        dilation: tokens from one of them to the next.
        dilated_heads: how many of the last heads have gaps; None for half of them (all, where there is one head).
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        window: int = 128,
        dilation: int = 4,
        dilated_heads: int | None = None,
        **place: Unpack[Place],
    ) -> None:
        heads = place["heads"]
        if dilated_heads is None:
            dilated_heads = heads - heads // 2
        if not is_whole(dilated_heads, 0, heads):
            raise wrong_setting("dilated_heads", f"= {dilated_heads!r}; give 0 to {heads}, the number of heads")
        with settings_named():
            gaps, plain = Local(window, dilation), Local(window)
        pattern: Pattern = gaps if dilated_heads else plain
        if 0 < dilated_heads < heads:
            pattern = PerHead([plain] * (heads - dilated_heads) + [gaps] * dilated_heads)
        super().__init__(pattern, **place)


dilated = DilatedAttention
