"""`attention=strided`: a window and every stride-th key, the strided pattern of Sparse Transformer."""

from __future__ import annotations

from longspan.attention.base import PatternAttention
from longspan.attention.errors import settings_named
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
        dropout: float = 0.0,
        backend: str = "auto",
        heads: int,
        head_dim: int,
        causal: bool,
        kv_heads: int | None = None,
        layer: int = 0,
        max_length: int | None = None,
    ) -> None:
        with settings_named():
            pattern = Local(window) | Strided(stride) if window else Strided(stride)
        super().__init__(
            pattern,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            causal=causal,
            max_length=max_length,
            dropout=dropout,
            backend=backend,
        )


strided = StridedAttention
