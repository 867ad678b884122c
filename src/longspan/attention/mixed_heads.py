"""`attention=mixed_heads`: another variant in each group of heads.

Legend: B batch, H heads, Hkv key/value heads, T tokens, n new tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longspan.attention.decoding import AttentionCache, check_keys
from longspan.attention.errors import wrong_setting
from longspan.attention.parts import parts_of
from longspan.attention.weights import ShowsWeights
from longspan.cost import Cost


class MixedCache(AttentionCache):
    """One cache a group of heads."""

    def __init__(self, batch: int, device: torch.device | str | None, parts: list[AttentionCache]) -> None:
        super().__init__(batch, device)
        self.parts = parts


class MixedHeads(ShowsWeights):
    """Consecutive groups of heads, each with a variant of its own, as evenly as they divide.

    Queries and keys are turned by positions where any part wants that. A part that makes its keys from its queries leaves the
    keys of its heads unused; where all parts do, the model projects none.

    Args:
        parts: names of variants, or mappings of a `name` and settings: [gated_delta, {name: local, window: 64}]; `name*2` has
            two groups. At most one a key/value head.
        heads, kv_heads, head_dim, causal, layer, max_length, grid: the model's.

    Raises:
        ConfigError: a name or a setting that no variant has, or more parts than heads, by its config key.
    """

    pattern = None

    def __init__(
        self,
        *,
        parts: Sequence[str | Mapping[str, Any]] = ("gated_delta", "local"),
        heads: int,
        head_dim: int,
        causal: bool,
        kv_heads: int | None = None,
        layer: int = 0,
        max_length: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.causal = heads, head_dim, causal
        self.kv_heads = heads if kv_heads is None else kv_heads
        entries = parts_of("parts", parts)
        if len(entries) > self.kv_heads:
            raise wrong_setting(
                "parts", f"holds {len(entries)} parts for {self.kv_heads} key/value heads; give at most one a head"
            )
        repeat = heads // self.kv_heads
        stops = [-(-(n + 1) * self.kv_heads // len(entries)) for n in range(len(entries))]
        self.kv_counts = [stop - first for first, stop in zip([0, *stops], stops, strict=False)]
        self.counts = [repeat * n for n in self.kv_counts]
        place = {"head_dim": head_dim, "causal": causal, "layer": layer, "max_length": max_length, "grid": grid}
        self.parts = nn.ModuleList(
            part.build(heads=n, kv_heads=m, **place) for part, n, m in zip(entries, self.counts, self.kv_counts, strict=True)
        )
        for entry, part, kv_count in zip(entries, self.parts, self.kv_counts, strict=True):
            if getattr(part, "value_heads", kv_count) != kv_count:
                raise wrong_setting(
                    entry.where,
                    f"= {entry.name!r} wants more projections than keys and values; leave gates and branch_keys out",
                )
        self.rotary = any(getattr(part, "rotary", True) for part in self.parts)
        self.shares_qk = all(getattr(part, "shares_qk", False) for part in self.parts)

    def _split(self, q: Tensor, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        q_parts, v_parts = q.split(self.counts, 1), v.split(self.kv_counts, 1)
        k_parts = q_parts if self.shares_qk else k.split(self.kv_counts, 1)
        return list(zip(q_parts, k_parts, v_parts, strict=True))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Any = None, segments: Any = None) -> Tensor:
        """q [B, H, T, D], k and v [B, Hkv, T, D] -> [B, H, T, D]; `lengths` and `segments` as each part takes them."""
        check_keys(self, q, k)
        operands = self._split(q, k, v)
        out = [part(*x, lengths=lengths, segments=segments) for part, x in zip(self.parts, operands, strict=True)]
        return torch.cat(out, 1)

    def values_for_map(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        operands = zip(self.parts, self._split(q, k, v), strict=True)
        return torch.cat([part.values_for_map(*x, lengths, segments) for part, x in operands], 1)  # type: ignore[operator]

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionCache:
        if self.undecodable:
            return super().new_cache(batch, device=device, dtype=dtype)
        made = [part.new_cache(batch, device=device, dtype=dtype) for part in self.parts]  # type: ignore[operator]
        return MixedCache(batch, device, made)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: MixedCache, *, lengths: Tensor | None = None) -> Tensor:
        lengths = self.check_decode(q, k, v, cache, lengths)
        operands = zip(self.parts, self._split(q, k, v), cache.parts, strict=True)
        out = [part.decode(*x, held, lengths=lengths) for part, x, held in operands]  # type: ignore[operator]
        cache.positions = cache.positions + (q.shape[2] if lengths is None else lengths.to(cache.positions))
        return torch.cat(out, 1)

    def cost(self, length: int) -> Cost:
        """The sum of the parts'."""
        return sum((part.cost(length) for part in self.parts), Cost())  # type: ignore[operator]


mixed_heads = MixedHeads
