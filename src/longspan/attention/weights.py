"""Reads the attention weights of any attention whose output is linear in the values.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longspan.attention.decoding import Decodes
from longspan.config.errors import CallError

MOST_MAPPED = 4096  # tokens; a map holds T * T weights a head


class ShowsWeights(Decodes):
    """Base of the attention modules that have weights: a map of what queries give keys."""

    @torch.no_grad()
    def attention_weights(
        self, q: Tensor, k: Tensor, *, lengths: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Weights [B, H, T, T] that this attention gives each key, for short sequences; as in evaluation.

        The output is linear in the values, so values that are unit vectors read the weights off, D keys at a time.

        Raises:
            CallError: more tokens than a map is made for.
        """
        B, _, T, D = q.shape
        if T > MOST_MAPPED:
            raise CallError(f"a map of {T:,} tokens holds {T * T:,} weights a head; give up to {MOST_MAPPED:,}")
        before = self.training
        self.eval()
        try:
            columns = []
            for first in range(0, T, D):
                unit = torch.eye(T, device=q.device, dtype=q.dtype)[:, first : first + D]  # (T, up to D)
                unit = nn.functional.pad(unit, (0, D - unit.shape[1])).expand(B, self.kv_heads, T, D)
                columns.append(self.values_for_map(q, k, unit, lengths, segments))
        finally:
            self.train(before)
        return torch.cat(columns, -1)[..., :T]

    def values_for_map(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        """The output that `attention_weights` reads; variants that are not linear in the values override it."""
        return self(q, k, v, lengths=lengths, segments=segments)
