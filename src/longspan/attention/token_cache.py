"""Decoding where any token may be chosen again: all keys and values are kept, each at its own position.

Legend: B batch, H heads, Hkv key/value heads, P heads that choose for themselves, n new tokens, S chosen tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.attention.decoding import AttentionCache
from longspan.attention.key_cache import SPARE, existing

VALUES_AT_ONCE = 1 << 23  # gathered numbers held at a time


class TokenCache(AttentionCache):
    """Keys and values of every token so far, token p at place p.

    Attributes:
        keys, values: [B, Hkv, places, D]; the last place is for what does not exist.
        seen: as many tokens as the longest sequence has had, at most.
    """

    def __init__(self, batch: int, heads: int, width: int, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__(batch, device)
        self.keys = torch.zeros((batch, heads, 1, width), device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.seen = 0

    @property
    def places(self) -> int:
        """Places for tokens."""
        return self.keys.shape[2] - 1

    def add(self, k: Tensor, v: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Takes k, v [B, Hkv, n, D] in; returns the positions [B, n] of the tokens and which of them exist."""
        position, exists = existing(self.positions, k.shape[2], lengths)
        more = self.seen + k.shape[2] - self.places
        if more > 0:
            more += max(SPARE, self.places // 8)
            self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))
        self.seen += k.shape[2]
        slot = torch.where(exists, position, self.places)[:, None, :, None]
        for store, new in ((self.keys, k), (self.values, v)):
            kept = new.masked_fill(~exists[:, None, :, None], 0.0)
            store.scatter_(2, slot.expand_as(new), kept.to(store.dtype))
        self.positions = self.positions + exists.sum(1)
        return position, exists

    def attend(self, q: Tensor, chosen: Tensor, live: Tensor, of: slice = slice(None)) -> Tensor:
        """[B, H, n, D]: attention of q [B, H, n, D] to tokens chosen [B, P, n, S], as far as they are live.

        `of` says which of the cached heads hold their keys and values.
        """
        (B, H, n, D), (_, P, _, S) = q.shape, chosen.shape
        keys, values = self.keys[:, of], self.values[:, of]
        number = torch.arange(B, device=q.device)[:, None, None, None]
        kv = (torch.arange(P, device=q.device) * keys.shape[1] // P)[None, :, None, None]
        grouped = q.view(B, P, H // P, n, D)
        out = []
        for first in range(0, n, step := max(1, VALUES_AT_ONCE // (B * P * S * D))):
            part = slice(first, first + step)
            at, kept = chosen[:, :, part].clamp(0, self.places), live[:, :, None, part]
            scores = torch.einsum("bpgnd,bpnsd->bpgns", grouped[:, :, :, part], keys[number, kv, at]) * D**-0.5
            scores = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(~kept, float("-inf"))
            nothing = ~kept.any(-1, keepdim=True)
            weights = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0).to(q.dtype)
            out.append(torch.einsum("bpgns,bpnsd->bpgnd", weights, values[number, kv, at]))
        return torch.cat(out, 3).reshape(B, H, n, D)

    def attend_to_blocks(self, q: Tensor, picks: Tensor, size: int, position: Tensor, of: slice = slice(None)) -> Tensor:
        """[B, H, n, D]: attention to blocks picked [B, P, n, K] (-1 for none), up to each query's position [B, n]."""
        chosen = (picks[..., None] * size + torch.arange(size, device=q.device)).flatten(3)
        live = (picks[..., None] >= 0).expand(*picks.shape, size).flatten(3) & (chosen <= position[:, None, :, None])
        return self.attend(q, chosen, live, of)


class BlockMeanCache(TokenCache):
    """All tokens, and the sum of the keys of each block, completed as blocks fill: what MoBA chooses by.

    Attributes:
        sums: [B, Hkv, nb, D] float32.
    """

    def __init__(self, batch: int, heads: int, width: int, device: Any, dtype: torch.dtype | None, size: int) -> None:
        super().__init__(batch, heads, width, device, dtype)
        self.size = size
        exact = torch.promote_types(self.keys.dtype, torch.float32)
        self.sums = torch.zeros((batch, heads, 1, width), device=device, dtype=exact)

    def add(self, k: Tensor, v: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        position, exists = super().add(k, v, lengths)
        more = -(-self.places // self.size) - self.sums.shape[2]
        if more > 0:
            self.sums = F.pad(self.sums, (0, 0, 0, more))
        block = (position // self.size).clamp(max=self.sums.shape[2] - 1)[:, None, :, None]
        new = k.masked_fill(~exists[:, None, :, None], 0.0).to(self.sums.dtype)
        self.sums.scatter_add_(2, block.expand_as(new), new)
        return position, exists

    def picks(self, q: Tensor, position: Tensor, count: int) -> Tensor:
        """[B, H, n, up to count + 1]: the own block, then earlier ones whose mean key a query likes best, -1 for none."""
        (B, H, n, D), (_, Hkv, blocks, _) = q.shape, self.sums.shape
        grouped = q.to(self.sums.dtype).view(B, Hkv, H // Hkv, n, D)
        scores = (grouped @ (self.sums / self.size)[:, :, None].transpose(-1, -2)).flatten(1, 2)  # (B, H, n, nb)
        own = (position // self.size)[:, None, :, None]
        scores = scores.masked_fill(torch.arange(blocks, device=q.device) >= own, float("-inf"))
        best = scores.topk(min(count, blocks), -1)
        return torch.cat((own.expand(B, H, n, 1), torch.where(best.values > float("-inf"), best.indices, -1)), -1)


class QueryCache(TokenCache):
    """All tokens with their queries.

    Attributes:
        queries: [B, H, places, D].
    """

    def __init__(self, batch: int, kv_heads: int, width: int, device: Any, dtype: torch.dtype | None, *, heads: int) -> None:
        super().__init__(batch, kv_heads, width, device, dtype)
        self.queries = torch.zeros((batch, heads, 1, width), device=device, dtype=dtype)

    def add_all(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `add`, queries too."""
        position, exists = self.add(k, v, lengths)
        self.queries = F.pad(self.queries, (0, 0, 0, self.keys.shape[2] - self.queries.shape[2]))
        slot = torch.where(exists, position, self.places)[:, None, :, None]
        self.queries.scatter_(2, slot.expand_as(q), q.masked_fill(~exists[:, None, :, None], 0.0).to(self.queries.dtype))
        return position, exists


class CompressedCache(TokenCache):
    """All tokens, and the compressed keys and values of each block that is full: what native sparse attention looks at first.

    Attributes:
        coarse_keys, coarse_values: [B, Hkv, nc, D]; the last place is for blocks that are not full. They are made of the
            first Hkv of the cached heads.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        width: int,
        device: Any,
        dtype: torch.dtype | None,
        block: int,
        stride: int,
        compressed_heads: int,
    ) -> None:
        super().__init__(batch, heads, width, device, dtype)
        self.block, self.stride = block, stride
        self.coarse_keys, self.coarse_values = (torch.zeros_like(self.keys[:, :compressed_heads]) for _ in range(2))

    def compress(self, before: Tensor, n: int, compress_k: Any, compress_v: Any) -> None:
        """Compresses the blocks that n new tokens have filled, `before` [B] being the tokens before them."""
        B, heads, _, D = self.coarse_keys.shape

        def full(tokens: Tensor) -> Tensor:
            return ((tokens - self.block) // self.stride + 1).clamp(min=0)

        more = max(0, (self.places - self.block) // self.stride + 1) + 1 - self.coarse_keys.shape[2]
        if more > 0:
            self.coarse_keys, self.coarse_values = (F.pad(x, (0, 0, 0, more)) for x in (self.coarse_keys, self.coarse_values))
        rows = torch.arange(B, device=self.keys.device)[:, None, None]
        for first in range(0, n // self.stride + 2, step := max(1, VALUES_AT_ONCE // (B * heads * self.block * D))):
            number = full(before)[:, None] + torch.arange(first, min(first + step, n // self.stride + 2), device=before.device)
            token = (number[..., None] * self.stride + torch.arange(self.block, device=before.device)).clamp(max=self.places)
            slot = torch.where(number < full(self.positions)[:, None], number, self.coarse_keys.shape[2] - 1)
            for store, coarse, compress in (
                (self.keys, self.coarse_keys, compress_k),
                (self.values, self.coarse_values, compress_v),
            ):
                blocks = store[:, :heads].transpose(1, 2)[rows, token].permute(0, 1, 3, 2, 4).flatten(0, 1)  # (B m, Hkv, l, D)
                made = compress(blocks)[:, :, 0].view(B, -1, heads, D).transpose(1, 2)  # (B, Hkv, m, D)
                coarse.scatter_(2, slot[:, None, :, None].expand_as(made), made.to(coarse.dtype))


class IndexCache(TokenCache):
    """All tokens, and the key that the indexer has made of each: what DeepSeek sparse attention chooses by.

    Attributes:
        index_keys: [B, places, E]; the last place is for what does not exist.
    """

    def __init__(self, batch: int, heads: int, width: int, device: Any, dtype: torch.dtype | None, index_width: int) -> None:
        super().__init__(batch, heads, width, device, dtype)
        self.index_keys = torch.zeros((batch, 1, index_width), device=device, dtype=dtype)

    def add_indexed(self, keys: Tensor, position: Tensor, exists: Tensor) -> None:
        """Takes the indexer's keys [B, n, E] of the tokens that `add` has just taken."""
        more = self.places + 1 - self.index_keys.shape[1]
        self.index_keys = F.pad(self.index_keys, (0, 0, 0, more))
        slot = torch.where(exists, position, self.places)[..., None].expand_as(keys)
        self.index_keys.scatter_(1, slot, keys.masked_fill(~exists[..., None], 0.0).to(self.index_keys.dtype))

    def tokens(self, queries: Tensor, weights: Tensor, position: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """[B, n, up to count] tokens up to each query's position that score highest, the earliest among equals, and which of
        them exist; of indexer queries [B, J, n, E] and weights [B, J, n]."""
        exact = torch.promote_types(queries.dtype, torch.float32)
        keys = self.index_keys[:, None, : self.places].to(exact)
        scores = ((queries.to(exact) @ keys.transpose(2, 3)).relu() * weights.to(exact)[..., None]).sum(1)  # (B, n, places)
        future = torch.arange(self.places, device=scores.device) > position[..., None]
        best = scores.masked_fill(future, float("-inf")).sort(dim=-1, descending=True, stable=True)
        return best.indices[..., :count], best.values[..., :count] > float("-inf")
