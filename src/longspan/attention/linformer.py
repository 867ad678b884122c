"""`attention=linformer`: keys and values projected along the sequence to a fixed number, by learned weights.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, n projected keys.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.attention.content import ContentAttention, without_padding
from longspan.attention.errors import as_whole, wrong_setting
from longspan.attention.place import Place
from longspan.config.errors import CallError
from longspan.cost import Cost


class Linformer(ContentAttention):
    """Linformer (arXiv:2006.04768): softmax attention over n keys and values, each a learned sum over all positions.

    The sums are over the first T rows of projections [max_length, n], shared by all heads. Both ways only: each projected key
    holds every token. A padded token adds nothing.

    Args:
        projected: n.
        share: one projection for keys and values.
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
        max_length: the longest sequence.
    """

    has_kernels = False

    def __init__(
        self,
        *,
        projected: int = 128,
        share: bool = False,
        **place: Unpack[Place],
    ) -> None:
        max_length = place.get("max_length")
        super().__init__(**place)
        if self.causal:
            raise wrong_setting(
                "",
                "= 'linformer' sums keys over the whole sequence, so queries would see later tokens: it is not causal. Take a "
                "task that sees both ways (task=masked_modelling, sequence_classification), or attention=compressed or linear",
            )
        if max_length is None:
            raise wrong_setting("", "= 'linformer' has weights for each position; give max_length")
        self.projected = as_whole("projected", projected, 1, "a number of projected keys")
        self.share, self.max_length = bool(share), max_length
        bound = projected**-0.5
        self.project_k = nn.Parameter(torch.empty(max_length, projected).uniform_(-bound, bound))
        self.project_v = None if share else nn.Parameter(torch.empty(max_length, projected).uniform_(-bound, bound))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        T = q.shape[2]
        if self.project_k.shape[0] < T:
            raise CallError(f"linformer was built for {self.max_length} tokens and got {T}; build it for more")
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        of_k = self.project_k[:T].to(k.dtype)
        of_v = of_k if self.project_v is None else self.project_v[:T].to(v.dtype)
        keys, values = of_k.T @ k, of_v.T @ v  # (B, Hkv, n, D)
        repeat = self.heads // self.kv_heads
        keys, values = (x.repeat_interleave(repeat, 1) for x in (keys, values))
        out = F.scaled_dot_product_attention(q, keys, values, dropout_p=self.dropped)
        return without_padding(out, lengths)

    def cost(self, length: int) -> Cost:
        """A query and a projected key are a pair; `other_flops` is the projection."""
        pairs = self.heads * length * self.projected
        flops = 4 * self.head_dim * pairs
        project = 4 * length * self.projected * self.head_dim * self.kv_heads
        held = 4 * self.kv_heads * self.head_dim * self.projected  # keys and values of two bytes a number
        return Cost(min(pairs, self.heads * length**2), pairs, flops, flops, project, state_bytes=held)


linformer = Linformer
