"""The options of a call of selected attention.

Legend: B batch, H heads, Hkv key/value heads, P heads that pick for themselves, T tokens, D head width, n picks a query.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Of ops: the fields of a `Selection`, then the backend.
SCHEMA = (
    "Tensor picks, Tensor order, Tensor start, Tensor? lengths, Tensor? segments, Tensor? seed, "
    "SymInt block_size, bool causal, float scale, float dropout_p, str backend"
)


@dataclass(frozen=True)
class Selection:
    """Which keys each query attends to, and how.

    Attributes:
        picks: [B, P, T, n] int32, the key blocks of each query.
        order, start: the queries of each key block, as `queries_of_blocks` lists them.
        lengths, segments: [B] and [B, T] int, or None.
        seed: of the dropout, one int64; None without.
        block_size, causal, scale, dropout_p: see `selected_attention`.
    """

    picks: Tensor
    order: Tensor
    start: Tensor
    lengths: Tensor | None
    segments: Tensor | None
    seed: Tensor | None
    block_size: int
    causal: bool
    scale: float
    dropout_p: float

    @property
    def blocks(self) -> int:
        return -(-self.picks.shape[2] // self.block_size)
