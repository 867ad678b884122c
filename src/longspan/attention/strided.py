"""`attention=strided`: a window and every stride-th key, the strided pattern of Sparse Transformer."""

from __future__ import annotations

from longspan.attention.variant import Place, variant
from longspan.patterns import Local, Pattern, Strided


@variant("strided")
def strided(place: Place, *, stride: int = 128, window: int | None = 128) -> Pattern:
    """A window and every stride-th key, merged in each head (arXiv:1904.10509, "merged heads").

    Args:
        stride: tokens from one key to the next.
        window: keys of the window beside it, as in `local`; null or 0 for none, where tokens of different residues of
            `stride` never meet.
    """
    return Local(window) | Strided(stride) if window else Strided(stride)
