"""`attention=strided` and `attention=fixed`: the two factorised patterns of Sparse Transformer."""

from __future__ import annotations

from longspan.attention.variant import Place, variant
from longspan.patterns import Fixed, Local, Pattern, Strided


@variant("strided")
def strided(place: Place, *, stride: int = 128, window: int | None = 128) -> Pattern:
    """A window and every stride-th key, merged in each head (arXiv:1904.10509, "merged heads").

    Args:
        stride: tokens from one key to the next.
        window: keys of the window beside it, as in `local`; null or 0 for none, where tokens of different residues of
            `stride` never meet.
    """
    return Local(window) | Strided(stride) if window else Strided(stride)


@variant("fixed")
def fixed(place: Place, *, stride: int = 128, summary: int = 16) -> Pattern:
    """The query's own block of `stride` tokens, and the last `summary` tokens of every block (arXiv:1904.10509)."""
    return Fixed(stride, summary)
