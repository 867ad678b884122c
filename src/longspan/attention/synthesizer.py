"""`attention=synthesizer`: weights that do not depend on keys: learned for each pair of positions, or computed from the query.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, L longest sequence, r rank.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.attention.content import ContentAttention, without_padding
from longspan.attention.decoding import AttentionCache, as_in_evaluation
from longspan.attention.errors import as_whole, wrong_setting
from longspan.attention.place import Place
from longspan.config.errors import CallError
from longspan.cost import Cost

KINDS = ("random", "dense", "factorised", "factorised_dense")
MOST_WEIGHTS = 1 << 31  # of a call, which are held


class ValueCache(AttentionCache):
    """The values [B, Hkv, T, D] of the tokens so far, each at its position; keys are not asked for."""

    def __init__(self, batch: int, device: torch.device | str | None, values: Tensor) -> None:
        super().__init__(batch, device)
        self.values = values


class Synthesizer(ContentAttention):
    """The Synthesizer (arXiv:2005.00743): softmax(S) v, where S [H, T, T] is not made of queries and keys.

    Its weights grow with T * T. Positions are those of the weights: the model turns no queries (`rotary` is false).

    Args:
        kind: "random", S a learned matrix of each head; "factorised", one of rank `rank`; "dense", each row said by its query,
            W2 relu(W1 q + b1) + b2; "factorised_dense", a row the product of two shorter ones.
        rank: r, of "factorised".
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
        max_length: L.
    """

    rotary = False
    has_kernels = False

    def __init__(
        self,
        *,
        kind: str = "factorised",
        rank: int = 8,
        **place: Unpack[Place],
    ) -> None:
        max_length = place.get("max_length")
        super().__init__(**place)
        if kind not in KINDS:
            raise wrong_setting("kind", f"= {kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if max_length is None:
            raise wrong_setting("", "= 'synthesizer' has weights for each position; give max_length")
        self.kind, self.max_length, self.rank = kind, max_length, as_whole("rank", rank, 1, "the rank of the factors")
        L, D = max_length, self.head_dim

        def weight(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(self.heads, *shape) * fan_in**-0.5)

        if kind == "random":
            self.table = weight(L, L, fan_in=1)
        elif kind == "factorised":
            self.rows, self.columns = weight(L, rank, fan_in=rank), weight(L, rank, fan_in=1)
        else:
            self.inner, self.inner_bias = weight(D, D, fan_in=D), nn.Parameter(torch.zeros(self.heads, 1, D))
            self.short = 1 if kind == "dense" else int(L**0.5)  # columns j % short and j // short have a weight each
            widths = [-(-L // self.short), *([self.short] if self.short > 1 else [])]
            self.outer = nn.ParameterList(weight(D, width, fan_in=D) for width in widths)
            self.outer_bias = nn.ParameterList(nn.Parameter(torch.zeros(self.heads, 1, width)) for width in widths)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        (B, H, T, _), L = q.shape, self.max_length
        if L < T:
            raise CallError(f"synthesizer was built for {L} tokens and got {T}; build it for more")
        if B * H * T * T > MOST_WEIGHTS:
            raise CallError(
                f"synthesizer would hold {B * H * T * T:,} weights (limit {MOST_WEIGHTS:,}); give shorter sequences"
            )
        q, v = (without_padding(x, lengths) for x in (q, v))
        scores = self.scores(q)  # (B or 1, H, T, T), float32 or wider
        live = torch.ones(T, T, dtype=torch.bool, device=q.device)
        if self.causal:
            live = live.tril()
        elif lengths is not None:  # a causal query has no key beyond its own place
            live = (torch.arange(T, device=q.device) < lengths[:, None])[:, None, None]
        scores = scores.masked_fill(~live, torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(-1), self.dropped).to(v.dtype)
        out = weights @ v.repeat_interleave(H // v.shape[1], 1)
        return without_padding(out, lengths)

    def scores(self, q: Tensor) -> Tensor:
        """S before the softmax."""
        T, wide = q.shape[2], torch.promote_types(q.dtype, torch.float32)
        if self.kind == "random":
            return self.table[None, :, :T, :T].to(wide)
        if self.kind == "factorised":
            return (self.rows[:, :T] @ self.columns[:, :T].transpose(-1, -2))[None].to(wide)
        return self.said(q, T)

    def said(self, q: Tensor, columns: int) -> Tensor:
        """[B, H, T, columns], what each query says of the positions."""
        wide = torch.promote_types(q.dtype, torch.float32)
        hidden = F.relu(q.to(wide) @ self.inner.to(wide) + self.inner_bias.to(wide))
        parts = [hidden @ w.to(wide) + b.to(wide) for w, b in zip(self.outer, self.outer_bias, strict=True)]
        if len(parts) == 1:
            return parts[0][..., :columns]
        column = torch.arange(columns, device=q.device)
        return parts[0][..., column // self.short] * parts[1][..., column % self.short]

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionCache:
        if self.undecodable:
            return super().new_cache(batch, device=device, dtype=dtype)
        AttentionCache(batch, device)  # checks `batch`
        shape = (batch, self.kv_heads, 0, self.head_dim)
        return ValueCache(batch, device, torch.zeros(shape, device=device, dtype=dtype or torch.float32))

    @torch.no_grad()
    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: ValueCache, *, lengths: Tensor | None = None) -> Tensor:
        lengths = self.check_decode(q, k, v, cache, lengths)
        n, before = q.shape[2], cache.positions
        after = before + (n if lengths is None else lengths.to(before))
        total = int(after.max())
        if total > self.max_length:
            raise CallError(f"synthesizer was built for {self.max_length} tokens and got {total}; build it for more")
        q, v = (without_padding(x, lengths) for x in (q, v))
        i = before[:, None] + torch.arange(n, device=q.device)  # (B, n) positions
        place = torch.where(i < after[:, None], i, total)[:, None, :, None].expand_as(v)
        grown = F.pad(cache.values, (0, 0, 0, total + 1 - cache.values.shape[2]))  # one more place, for what is no token
        cache.values = grown.scatter(2, place, v.to(grown.dtype))[:, :, :total]
        with as_in_evaluation(self):
            scores = self.rows_of_scores(q, i.clamp(max=self.max_length - 1), total)
        seen = (torch.arange(total, device=q.device) <= i[..., None])[:, None]
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1).to(v.dtype)
        cache.positions = after
        values = cache.values.to(v.dtype).repeat_interleave(self.heads // self.kv_heads, 1)
        return without_padding(weights @ values, lengths)

    def rows_of_scores(self, q: Tensor, i: Tensor, total: int) -> Tensor:
        """[B, H, n, total]: S in the rows i [B, n], of the queries q [B, H, n, D] there."""
        wide = torch.promote_types(q.dtype, torch.float32)
        if self.kind == "random":
            return self.table[:, i, :total].transpose(0, 1).to(wide)
        if self.kind == "factorised":
            return (self.rows[:, i].transpose(0, 1) @ self.columns[:, :total].transpose(-1, -2)).to(wide)
        return self.said(q, total)

    def cost(self, length: int) -> Cost:
        """A pair takes its value, 2 D FLOPs, and its score: nothing, 2 r, or 2 D."""
        H, D = self.heads, self.head_dim
        pairs = H * (length * (length + 1) // 2 if self.causal else length * length)
        visited = H * length * length
        of_score = {"random": 0, "factorised": 2 * self.rank, "dense": 2 * D, "factorised_dense": 1}[self.kind]
        other = 0 if self.kind in ("random", "factorised") else 2 * H * length * D * D
        if self.kind == "factorised_dense":
            other += 2 * H * length * D * sum(w.shape[-1] for w in self.outer)
        held = 2 * self.kv_heads * D * length  # values of two bytes a number; keys are not asked for
        return Cost(pairs, visited, (2 * D + of_score) * pairs, (2 * D + of_score) * visited, other, state_bytes=held)


synthesizer = Synthesizer
