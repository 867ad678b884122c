"""Attention of a decoder's tokens to an encoder's.

Legend: B batch, H heads, Hkv key/value heads, Tq target tokens, Tk source tokens, n new tokens, D head width, C model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longspan.cost import Cost, linear_flops
from longspan.functional import sparse_attention
from longspan.models.block import Block, HeadNorm
from longspan.models.settings import TransformerSettings
from longspan.models.sight import Sight, packed_pairs
from longspan_kernels.block_sparse import counted_pairs

PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Memory:
    """The output of an encoder: `states` [B, Tk, C], `lengths` [B], and of packed pairs `segments` [B, Tk]."""

    states: Tensor
    lengths: Tensor | None = None
    segments: Tensor | None = None


class CrossCache:
    """Keys and values [B, Hkv, Tk, D] of the sources, `lengths` [B] of them; a streamed source grows."""

    def __init__(self, k: Tensor, v: Tensor, lengths: Tensor) -> None:
        self.k, self.v, self.lengths = k, v, lengths

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (self.k, self.v, self.lengths))

    def extend(self, k: Tensor, v: Tensor) -> None:
        """Takes in further source tokens, the same number for each sequence."""
        self.k, self.v = torch.cat((self.k, k), 2), torch.cat((self.v, v), 2)
        self.lengths = self.lengths + k.shape[2]

    def select(self, rows: Tensor) -> None:
        self.k, self.v, self.lengths = self.k[rows], self.v[rows], self.lengths[rows]


class CrossAttention(nn.Module):
    """Queries of the decoder, keys and values of the encoder, without rotary positions; a row sees what its `Sight` says."""

    def __init__(self, settings: TransformerSettings, sight: Sight, longest: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = settings.heads, settings.key_value_heads, settings.head_width
        self.sight, self.longest = sight, longest
        self.q = nn.Linear(settings.width, self.heads * self.head_dim, bias=False)
        self.kv = nn.Linear(settings.width, 2 * self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, settings.width, bias=False)
        self.q_norm = HeadNorm(self.head_dim, settings.norm_eps) if settings.qk_norm else nn.Identity()
        self.k_norm = HeadNorm(self.head_dim, settings.norm_eps) if settings.qk_norm else nn.Identity()
        self._rules: dict[torch.device, Any] = {}

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, Hkv, Tk, D] of the encoder's states [B, Tk, C]."""
        k, v = self.kv(states).unflatten(-1, (2 * self.kv_heads, self.head_dim)).transpose(1, 2).chunk(2, dim=1)
        return self.k_norm(k).to(v.dtype), v

    def queries(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)  # (B, H, Tq, D)
        return self.q_norm(q).to(x.dtype if not torch.is_autocast_enabled(x.device.type) else q.dtype)

    def forward(self, x: Tensor, memory: Memory, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        """[B, Tq, C] of target states [B, Tq, C]; `lengths` and `segments` are the target's."""
        q, (k, v) = self.queries(x), self.keys_values(memory.states)
        q = q.to(v.dtype)
        mixed = self._attend(q, k, v, (lengths, memory.lengths), (segments, memory.segments))
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: tuple[Tensor | None, Tensor | None],
        segments: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        (B, _, Tq, _), Tk = q.shape, k.shape[2]
        packed = segments if segments[0] is not None else None
        if self.sight.whole:
            return sparse_attention(q, k, v, self.sight.pattern, lengths=lengths, segments=packed)  # type: ignore[return-value]
        if packed is not None:
            raise packed_pairs(self.sight.name)
        # row r of the padded call stands at key r + (rows_k - rows_q), which is r + ahead
        rows_q = max(Tq, Tk - self.sight.ahead)
        rows_k = rows_q + self.sight.ahead
        q_lengths, k_lengths = (
            torch.full((B,), T, device=q.device) if given is None else given for given, T in zip(lengths, (Tq, Tk), strict=True)
        )
        q = F.pad(q, (0, 0, 0, rows_q - Tq))
        k, v = (F.pad(x, (0, 0, 0, rows_k - Tk)) for x in (k, v))
        out = sparse_attention(q, k, v, self.sight.pattern, causal=self.sight.causal, lengths=(q_lengths, k_lengths))
        assert isinstance(out, Tensor)
        return out[:, :, :Tq]

    def decode(self, x: Tensor, cache: CrossCache, positions: Tensor) -> Tensor:
        """[B, n, C] of new target tokens at `positions` [B, n], equal to those rows of `forward`."""
        q, k, v = self.queries(x).to(cache.v.dtype), cache.k, cache.v
        B, H, n, D = q.shape
        G = H // self.kv_heads
        scores = (q.reshape(B, self.kv_heads, G * n, D) @ k.transpose(-1, -2)).view(B, H, n, -1) * D**-0.5
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        live = (
            self._live(positions, k.shape[2])
            & (torch.arange(k.shape[2], device=q.device) < cache.lengths[:, None])[:, None, None]
        )
        scores = scores.masked_fill(~live, float("-inf"))
        nothing = ~live.any(-1, keepdim=True)
        weights = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0).to(v.dtype)
        mixed = (weights.reshape(B, self.kv_heads, G * n, -1) @ v).view(B, H, n, D)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _live(self, positions: Tensor, Tk: int) -> Tensor:
        """[B, H or 1, n, Tk] bool: what rows at `positions` [B, n] see."""
        if self.sight.whole:
            return torch.ones((1, 1, 1, Tk), dtype=torch.bool, device=positions.device)
        device, heads = positions.device, tuple(range(self.heads))
        if device not in self._rules:
            reach = self.longest + self.sight.ahead
            self._rules[device] = self.sight.pattern.rule(reach, reach, heads, self.sight.causal, device)
        i = (positions + self.sight.ahead)[:, None, :, None]
        head = torch.arange(self.heads, device=device).view(1, -1, 1, 1)
        return self._rules[device].live(head, i, torch.arange(Tk, device=device))

    def live_pairs(self, target: int, source: int) -> int:
        """Pairs that are kept, summed over heads."""
        if self.sight.whole:
            return self.heads * target * source
        step = max(1, PAIRS_AT_ONCE // (source * self.heads))
        rows = torch.arange(target)
        return sum(int(self._live(part[None], source).expand(-1, self.heads, -1, -1).sum()) for part in rows.split(step))

    def cost(self, target: int, source: int) -> Cost:
        """Of one pair of so many tokens: projections, and the pairs that one reference tiling visits."""
        rows_q = target if self.sight.whole else max(target, source - self.sight.ahead)
        rows_k = source if self.sight.whole else rows_q + self.sight.ahead
        visited = counted_pairs(self.sight.pattern.key, rows_q, rows_k, self.heads, self.sight.causal, 0)
        live = self.live_pairs(target, source)
        width = self.q.in_features
        projections = linear_flops(target, width, self.q.out_features + self.out.in_features)
        return Cost(
            live_pairs=live,
            visited_pairs=max(visited, live),
            attention_flops_live=4 * self.head_dim * live,
            attention_flops=4 * self.head_dim * max(visited, live),
            other_flops=projections + linear_flops(source, width, self.kv.out_features),
            state_bytes=4 * self.kv_heads * self.head_dim * source,
        )

    def extra_repr(self) -> str:
        return f"{self.sight.name}, heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}"


@dataclass
class LayerCache:
    """The cache of a decoder's layer: of its own tokens, and of the source."""

    own: Any
    cross: CrossCache

    @property
    def nbytes(self) -> int:
        return self.own.nbytes + self.cross.nbytes

    def select(self, rows: Tensor) -> None:
        self.own.select(rows)
        self.cross.select(rows)


class CrossBlock(Block):
    """x + attention(norm(x)), then x + cross_attention(norm(x), source), then x + mlp(norm(x))."""

    def __init__(self, settings: TransformerSettings, attention: nn.Module, make_cross: Callable[[], CrossAttention]) -> None:
        super().__init__(settings, attention)
        self.cross_norm = nn.RMSNorm(settings.width, eps=settings.norm_eps)
        self.cross = make_cross()
        with torch.no_grad():
            for linear in (self.cross.q, self.cross.kv, self.cross.out):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            self.cross.out.weight.mul_((3 * settings.layers) ** -0.5)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        lengths: Tensor | None = None,
        segments: Tensor | None = None,
        cache: LayerCache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        own = None if cache is None else cache.own
        before = None if own is None else own.positions  # the mixer takes the new tokens in
        x = x + self.dropout(self.mixer(self.attention_norm(x), cos, sin, lengths, segments, own))
        if cache is not None and before is not None:
            places = before[:, None] + torch.arange(x.shape[1], device=x.device)
            seen = self.cross.decode(self.cross_norm(x), cache.cross, places)
        else:
            assert memory is not None
            seen = self.cross(self.cross_norm(x), memory, lengths, segments)
        x = x + self.dropout(seen)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # (B, Tq, C)

    def cost_of_pair(self, target: int, source: int) -> Cost:
        return self.cost(target) + self.cross.cost(target, source)
