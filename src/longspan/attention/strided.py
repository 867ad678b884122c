"""`attention=strided`: a window and every stride-th key, the strided pattern of Sparse Transformer."""

from __future__ import annotations

from typing import Unpack

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
from longspan.attention.place import Place
from longspan.patterns import Local, Strided


class StridedAttention(PatternAttention):
    """A window and every stride-th key, merged in each head (arXiv:1904.10509, "merged heads").

    Args:
        stride: tokens from one key to the next.
        window: keys of the window beside it, as in `local`; None or 0 for none, where tokens of different residues of
            `stride` never meet.
        heads, kv_heads, head_dim, causal, dropout, backend, max_length: see `PatternAttention`.
    """

    def __init__(
        self,
        *,
        stride: int = 128,
        window: int | None = 128,
        **place: Unpack[Place],
    ) -> None:
        with settings_named():
            pattern = Local(window) | Strided(stride) if window else Strided(stride)
        super().__init__(pattern, **place)


strided = StridedAttention
