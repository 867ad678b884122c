"""`attention=compressed`: a window of single tokens, and what is older in compressed keys and values.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, r tokens a compressed key, N compressed keys.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.attention.base import compressed_pairs, visited_pairs
from longspan.attention.compression import attend_to_past
from longspan.attention.content import ContentAttention, for_all_heads, with_lse, without_padding
from longspan.attention.decoding import AttentionCache, as_in_evaluation
from longspan.attention.errors import as_whole, wrong_setting
from longspan.attention.place import Place
from longspan.cost import Cost
from longspan.patterns import Local
from longspan.patterns.compressed_keys import CompressedKeys
from longspan_kernels.selected import merge_by_lse

COMPRESSIONS = ("pooled", "strided", "convolved")
ROWS = 256  # new queries that are decoded at once


class CompressedCache(AttentionCache):
    """The last tokens of each sequence, and its compressed blocks.

    Attributes:
        near: keys and values [B, Hkv, M, D] of the last M tokens, the latest at the end; zeros before the first.
        far: compressed keys and values [B, Hkv, N, D], block c at place c.
    """

    def __init__(self, batch: int, device: torch.device | str | None, near: list[Tensor], far: list[Tensor]) -> None:
        super().__init__(batch, device)
        self.near, self.far = near, far


class CompressedAttention(ContentAttention):
    """Compressed memory (arXiv:1911.05507, 1801.10198): one softmax over a window and the blocks of r tokens outside of it.

    A block is seen, as one key and value, where any of its tokens lies outside the window; causal, where the first does, which
    is older than the window then, and all of the block in the past.

    Args:
        window: causal the last `window` keys, both ways window // 2 on each side and the token's own.
        rate: r, at most the window.
        compression: "pooled", the mean of a block; "strided", its first token; "convolved", a learned map of its tokens, one
            for keys and one for values, shared by the heads (it starts as the mean).
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
    """

    def __init__(
        self,
        *,
        window: int = 128,
        rate: int = 16,
        compression: str = "pooled",
        **place: Unpack[Place],
    ) -> None:
        super().__init__(**place)
        self.window = as_whole("window", window, 1, "a number of keys")
        self.rate = as_whole("rate", rate, 1, "tokens a compressed key")
        if rate > window:
            raise wrong_setting("rate", f"= {rate} is more than attention.window = {window}; give that many at most")
        if compression not in COMPRESSIONS:
            raise wrong_setting("compression", f"= {compression!r} is unknown; choose one of {', '.join(COMPRESSIONS)}")
        self.compression = compression
        if compression == "convolved":
            mean = torch.eye(self.head_dim).repeat(rate, 1, 1) / rate  # (r, D, D)
            self.map_k, self.map_v = nn.Parameter(mean.clone()), nn.Parameter(mean.clone())

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        far_k, far_v = self.compress(k, True, lengths), self.compress(v, False, lengths)
        call: dict[str, Any] = {"dropout_p": self.dropped, "backend": self.backend}
        parts = [with_lse(q, k, v, Local(self.window), causal=self.causal, lengths=lengths, **call)]
        if self.causal:
            parts.append(attend_to_past(q, far_k, far_v, self.far, **call))
        else:
            parts += self._far_both_ways(q, far_k, far_v, lengths, call)
        return without_padding(merge_by_lse(parts, backend=self.backend), lengths)

    @property
    def far(self) -> CompressedKeys:
        """Which whole blocks a query sees."""
        if self.causal:
            return CompressedKeys(self.rate, self.window)
        return CompressedKeys(self.rate, self.window // 2 + 1, self.rate - 1 - self.window // 2)

    def _far_both_ways(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, call: dict[str, Any]
    ) -> list[tuple[Tensor, Tensor]]:
        """Attention to compressed keys and values [B, Hkv, N, D]: to whole blocks, and to a last one that is cut short."""
        T, r = q.shape[2], self.rate
        if lengths is None and T % r == 0:
            return [with_lse(q, k, v, self.far, **call)]
        ends = torch.full((q.shape[0],), T, device=q.device) if lengths is None else lengths
        parts = [with_lse(q, k, v, self.far, lengths=(ends, ends // r), **call)]
        # It ends where the sequence does, which no pattern knows.
        last, (i, behind) = ends // r, (torch.arange(T, device=q.device), self.window // 2)
        sees = (last * r)[:, None] < i - behind  # (B, T)
        sees = (sees | (ends[:, None] - 1 > i + behind)) & (ends % r > 0)[:, None]
        at = last.clamp(max=k.shape[2] - 1)[:, None, None, None].expand(-1, k.shape[1], 1, k.shape[3])
        key, value = (for_all_heads(x.gather(2, at), q.shape[1]) for x in (k, v))  # (B, H, 1, D)
        exact = torch.promote_types(q.dtype, torch.float32)
        score = (q.to(exact) * key.to(exact)).sum(-1) * self.head_dim**-0.5  # (B, H, T)
        kept = F.dropout(torch.ones_like(score), self.dropped)[..., None].to(value.dtype)
        parts.append((value * kept, score.masked_fill(~sees[:, None], float("-inf"))))
        return parts

    def compress(self, x: Tensor, is_key: bool, lengths: Tensor | None) -> Tensor:
        """[B, Hkv, N, D] of x [B, Hkv, T, D], which holds zeros beyond the lengths."""
        T, r = x.shape[2], self.rate
        if self.compression == "strided":
            return x[:, :, ::r]
        blocks = F.pad(x, (0, 0, 0, -T % r)).unflatten(2, (-1, r))  # (B, Hkv, N, r, D)
        if self.compression == "convolved":
            maps = (self.map_k if is_key else self.map_v).to(x.dtype)
            return blocks.flatten(3) @ maps.flatten(0, 1)
        ends = torch.full((1,), T, device=x.device) if lengths is None else lengths
        first = torch.arange(blocks.shape[2], device=x.device) * r
        count = (ends[:, None] - first).clamp(1, r)  # (B or 1, N) tokens that exist
        # In float32: a sum of float16 numbers may be beyond them where their mean is not.
        total = blocks.sum(3, dtype=torch.promote_types(x.dtype, torch.float32))
        return (total / count[:, None, :, None]).to(x.dtype)

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionCache:
        if self.undecodable:
            return super().new_cache(batch, device=device, dtype=dtype)
        AttentionCache(batch, device)  # checks `batch`

        def empty(tokens: int) -> list[Tensor]:
            shape = (batch, self.kv_heads, tokens, self.head_dim)
            return [torch.zeros(shape, device=device, dtype=dtype or torch.float32) for _ in range(2)]

        return CompressedCache(batch, device, empty(self.window - 1), empty(0))

    @torch.no_grad()
    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: CompressedCache, *, lengths: Tensor | None = None) -> Tensor:
        lengths = self.check_decode(q, k, v, cache, lengths)
        n = q.shape[2]
        M, before = self.window - 1, cache.positions
        counts = torch.full_like(before, n) if lengths is None else lengths.to(before)
        k, v = (without_padding(x, lengths) for x in (k, v))
        whole = [torch.cat((kept.to(x.dtype), x), 2) for kept, x in zip(cache.near, (k, v), strict=True)]
        # Place s of `whole` is token before - M + s.
        made, after = before // self.rate, (before + counts) // self.rate
        blocks = int(after.max())
        new = int((after - made).max())
        numbers = made[:, None] + torch.arange(new, device=q.device)  # (B, new) blocks that these tokens complete
        places = (numbers * self.rate - before[:, None] + M)[..., None] + torch.arange(self.rate, device=q.device)
        for at, (x, far) in enumerate(zip(whole, cache.far, strict=True)):
            index = places.flatten(1).clamp(0, M + n - 1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            block = self.compress(x.gather(2, index), at == 0, None)  # (B, Hkv, new, D)
            grown = F.pad(far, (0, 0, 0, blocks - far.shape[2] + 1))  # one more place, for what is not complete
            target = torch.where(numbers < after[:, None], numbers, blocks)
            grown.scatter_(2, target[:, None, :, None].expand_as(block), block.to(far.dtype))
            cache.far[at] = grown[:, :, :blocks]
            last = counts[:, None] + torch.arange(M, device=q.device)
            cache.near[at] = x.gather(2, last[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])).to(cache.near[at].dtype)
        with as_in_evaluation(self):
            out = [self._decoded(q[:, :, first : first + ROWS], whole, cache.far, before, first) for first in range(0, n, ROWS)]
        cache.positions = before + counts
        return without_padding(torch.cat(out, 2).to(v.dtype), lengths)

    def _decoded(self, q: Tensor, whole: list[Tensor], far: list[Tensor], before: Tensor, first: int) -> Tensor:
        """The output of the new queries from `first` on."""
        M = self.window - 1
        i = (before[:, None] + first + torch.arange(q.shape[2], device=q.device))[..., None]  # (B, rows, 1)
        j = (before[:, None] - M + torch.arange(whole[0].shape[2], device=q.device))[:, None]  # (B, 1, M + n)
        near = (j >= 0) & (j <= i) & (i - j < self.window)
        start = torch.arange(far[0].shape[2], device=q.device) * self.rate
        seen = torch.cat((near, start <= i - self.window), -1)[:, None]
        keys, values = (
            torch.cat((x, old.to(x.dtype)), 2).repeat_interleave(q.shape[1] // x.shape[1], 1)
            for x, old in zip(whole, far, strict=True)
        )
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)

    def cost(self, length: int) -> Cost:
        """A query and a compressed key are a pair. `other_flops` is the compression."""
        r, w, H, D = self.rate, self.window, self.heads, self.head_dim
        behind = w - 1 if self.causal else w // 2
        blocks = -(-length // r)
        near = sum(min(i, behind) + 1 + (0 if self.causal else min(length - 1 - i, behind)) for i in range(length))
        far = 0
        for i in range(length):
            older = min(blocks, max(0, -(-(i - w + 1) // r) if self.causal else -(-(i - behind) // r)))
            if not self.causal:
                newer = blocks - min(blocks, (i + behind + 1) // r) if i + behind < length - 1 else 0
                both = max(0, older + newer - blocks)
                older += newer - both
            far += older
        visited = visited_pairs(Local(w), length, H, self.causal) + compressed_pairs(self.far, length, blocks, H)
        live = H * (near + far)
        other = 4 * length * D * D * self.kv_heads if self.compression == "convolved" else 0
        held = 4 * self.kv_heads * D * (min(length, w - 1) + length // r)  # keys and values of two bytes a number
        return Cost(live, visited, 4 * D * live, 4 * D * visited, other, state_bytes=held)


compressed = CompressedAttention
