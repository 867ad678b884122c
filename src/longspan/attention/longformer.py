"""`attention=longformer`: a sliding window and a few global tokens."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.attention.variant import Place, variant
from longspan.patterns import Longformer, Pattern


@variant("longformer")
def longformer(place: Place, *, window: int = 256, global_positions: Sequence[int] = (0,)) -> Pattern:
    """A sliding window and global tokens (arXiv:2004.05150), one set of projections for both.

    Args:
        window: keys of the window, as in `local`.
        global_positions: tokens that see and are seen by all; those past the length are ignored.
    """
    return Longformer(window, global_positions)
