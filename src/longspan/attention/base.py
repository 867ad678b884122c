"""Attention by a fixed pattern: one module for every pattern-based variant.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.attention.decoding import as_in_evaluation
from longspan.attention.errors import as_fraction, settings_named, wrong_setting
from longspan.attention.key_cache import KeyCache
from longspan.attention.place import check_heads
from longspan.attention.weights import ShowsWeights
from longspan.cost import Cost
from longspan.functional import BACKENDS, sparse_attention
from longspan.patterns import Pattern
from longspan.patterns.base import NEVER_ENDS
from longspan_kernels.block_sparse import counted_pairs, flash_refuses, what_runs

Lengths = Tensor | tuple[Tensor, Tensor]


class PatternAttention(ShowsWeights):
    """Softmax attention over the live pairs of a pattern. It has no parameters; projections are the model's.

    Args:
        pattern: which keys each query sees.
        heads, kv_heads, head_dim: H, Hkv (it divides H) and D (16 to 256).
        causal: only keys at or before the query.
        layer: number of the layer, from 0; variants that draw at random draw by it.
        dropout: share of attention weights that fall away, in training only.
        backend: "auto", "triton", "blocked", "dense", or "flash" (FlashAttention-4, for patterns that are one window or keep
            everything, without dropout).
        max_length: the longest sequence, where it is known.

    Raises:
        ConfigError: a setting that cannot work, by its config key.
    """

    def __init__(
        self,
        pattern: Pattern,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int,
        causal: bool,
        layer: int = 0,
        max_length: int | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        if backend not in BACKENDS:
            raise wrong_setting("backend", f"= {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
        kv_heads = check_heads(heads, kv_heads)
        with settings_named():
            pattern.head_groups(heads)  # a pattern made for another number of heads says so
        self.pattern, self.max_length = pattern, max_length
        self.heads, self.kv_heads, self.head_dim, self.causal = heads, kv_heads, head_dim, causal
        self.dropout, self.backend = as_fraction("dropout", dropout), backend
        if backend == "flash":
            if reason := flash_refuses(pattern.key, heads, causal):
                raise wrong_setting("backend", f"= 'flash': {reason}; give auto")
            if self.dropout:
                raise wrong_setting("dropout", f"= {dropout}: FlashAttention-4 has none; give 0, or attention.backend=auto")
        self._costs: dict[int, Cost] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Lengths | None = None, segments: Lengths | None = None):
        """q [B, H, T, D], k and v [B, Hkv, T, D] -> [B, H, T, D].

        Args:
            lengths: [B] int, tokens of each sequence; outputs past it are 0.
            segments: [B, T] int; tokens see their own segment alone.
        """
        return sparse_attention(
            q,
            k,
            v,
            self.pattern,
            causal=self.causal,
            lengths=lengths,
            segments=segments,
            dropout_p=self.dropout if self.training else 0.0,
            backend=self.backend,
        )

    def ran(self, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> tuple[str, int]:
        """(backend, visited pairs of one sequence over all heads): what the forward pass takes in training on this machine."""
        shape = (batch, self.heads, length, self.head_dim)
        q = torch.empty(1, dtype=dtype, device=device).expand(shape)
        return what_runs(q, q, self.pattern.key, self.causal, self.backend, self.dropout)

    def new_cache(self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KeyCache:
        """Keeps the keys that later queries still see; see `Decodes.new_cache`."""
        if self.undecodable:
            super().new_cache(batch)
        return KeyCache(
            self.pattern,
            batch,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_length=self.max_length,
            device=device,
            dtype=dtype,
        )

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: KeyCache, *, lengths: Tensor | None = None) -> Tensor:
        """q [B, H, n, D], k and v [B, Hkv, n, D] -> [B, H, n, D]; see `Decodes.decode`."""
        lengths = self.check_decode(q, k, v, cache, lengths)
        with as_in_evaluation(self):
            # A prompt is what training sees: the sparse kernel attends.
            out = cache.attend(q, k, v, lengths) if cache.seen else self(q, k, v, lengths=lengths)
            cache.add(k, v, lengths)
        return out

    def cost(self, length: int) -> Cost:
        """What the forward pass takes for one sequence of `length` tokens, summed over heads.

        A pair takes one dot product of width D for its score and one multiply-add of width D for its value: 4 * D FLOPs.
        Visited pairs are those of the reference tiling, the same on every machine; `ran` says what this one's backend visits.
        """
        if length not in self._costs:
            live = self.pattern.live_pairs(length, heads=self.heads, causal=self.causal)
            visited = visited_pairs(self.pattern, length, self.heads, self.causal)
            self._costs[length] = Cost(
                live_pairs=live,
                visited_pairs=visited,
                attention_flops_live=4 * self.head_dim * live,
                attention_flops=4 * self.head_dim * visited,
                state_bytes=4 * self.head_dim * held_keys(self.pattern, length, self.heads, self.kv_heads, self.causal),
            )
        return self._costs[length]

    def repattern(self, pattern: Pattern) -> None:
        """Goes on with another pattern."""
        pattern.head_groups(self.heads)
        self.pattern = pattern
        self._costs.clear()

    def extra_repr(self) -> str:
        return (
            f"{self.pattern}, heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, "
            f"causal={self.causal}, dropout={self.dropout}, backend={self.backend}"
        )


def held_keys(pattern: Pattern, length: int, heads: int, kv_heads: int, causal: bool) -> int:
    """Keys that a later query can still see, summed over key/value heads; both ways all."""
    if not causal:
        return kv_heads * length
    keys = torch.arange(length)
    repeat = heads // kv_heads
    seen: dict[Pattern, Tensor] = {}
    held = 0
    for first in range(0, heads, repeat):
        needed = torch.zeros(length, dtype=torch.bool)
        for head in range(first, first + repeat):
            own = pattern.at_head(head, heads)
            if own not in seen:
                seen[own] = own.last_query(keys, NEVER_ENDS) >= length
            needed |= seen[own]
        held += int(needed.sum())
    return held


def visited_pairs(pattern: Pattern, length: int, heads: int, causal: bool, bias_block: int = 0) -> int:
    """Pairs of the blocks that a pattern reaches into, summed over heads; `bias_block` as the call's block bias has.

    They are counted on one reference tiling, whatever device, dtype or backend runs. `PatternAttention.ran` says what the
    backend of this machine visits.
    """
    return counted_pairs(pattern.key, length, length, heads, causal, bias_block)


def compressed_pairs(pattern: Pattern, length: int, keys: int, heads: int) -> int:
    """`visited_pairs` of a pattern of queries that see fewer keys, each of which stands for several tokens."""
    return counted_pairs(pattern.key, length, keys, heads, False)
