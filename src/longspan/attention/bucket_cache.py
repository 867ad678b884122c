"""Decoding where a token sees tokens of its own bucket, chunk by chunk: what Reformer and routing attention keep.

A bucket is cut into chunks in the order of its tokens, and a token sees its own chunk and the one before. So a key is kept as
long as it lies in one of the last two chunks of its bucket, in some round of hashing.

Legend: B batch, H heads, Hkv key/value heads, R rounds, n new tokens, S slots, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.attention.key_cache import SCORES_AT_ONCE, Slots, existing
from longspan.patterns.base import NEVER_ENDS


class BucketCache(Slots):
    """Keys and values [B, H, S, D] with the bucket and chunk of each in every round.

    Attributes:
        bucket, chunk: [B, H, S, R] int64.
        counts: [B, H, R, buckets + 1] int64, how many tokens each bucket has had; the last one is of what does not exist.
        seen: as many tokens as the longest sequence has had, at most.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        width: int,
        device: Any,
        dtype: torch.dtype | None,
        *,
        rounds: int,
        buckets: int,
        size: int,
    ) -> None:
        super().__init__(batch, heads, width, device, dtype)
        self.size, self.seen = size, 0
        self.bucket = torch.full((batch, heads, 1, rounds), -1, dtype=torch.int64, device=device)
        self.chunk = torch.full_like(self.bucket, -1)
        self.counts = torch.zeros((batch, heads, rounds, buckets + 1), dtype=torch.int64, device=device)

    def placed(self, bucket: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """(bucket, chunk) [B, H, n, R] of new tokens whose buckets are [B, H, R, n]; counts them."""
        exists = existing(self.positions, bucket.shape[-1], lengths)[1][:, None, None]
        bucket = torch.where(exists, bucket, self.counts.shape[-1] - 1)
        order = torch.argsort(bucket, dim=-1, stable=True)
        new = torch.zeros_like(self.counts).scatter_add(-1, bucket, torch.ones_like(bucket))
        first = new.cumsum(-1) - new
        sorted_bucket = bucket.gather(-1, order)
        place = torch.arange(bucket.shape[-1], device=bucket.device) - first.gather(-1, sorted_bucket)
        rank = torch.zeros_like(bucket).scatter(-1, order, place) + self.counts.gather(-1, bucket)
        self.counts = self.counts + new
        return bucket.transpose(-1, -2), (rank // self.size).transpose(-1, -2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bucket: Tensor, chunk: Tensor, *, scale: float, itself: bool
    ) -> tuple[Tensor, Tensor]:
        """Outputs [B, H, n, D] of new tokens, and which of them [B, H, n, 1] see nothing.

        Args:
            q, k, v: [B, H, n, D].
            bucket, chunk: [B, H, n, R], of `placed`.
            itself: whether a token sees itself.
        """
        (B, H, n, _), at = q.shape, torch.arange(q.shape[2], device=q.device)
        out, alone = [], []
        slots = self.keys.shape[2]
        for first in range(0, n, step := max(1, SCORES_AT_ONCE // (B * H * (slots + n) * bucket.shape[-1]))):
            part, parts = slice(first, first + step), []
            for keys, its_bucket, its_chunk, own in ((self.keys, self.bucket, self.chunk, False), (k, bucket, chunk, True)):
                near = chunk[:, :, part, None] - its_chunk[:, :, None]  # (B, H, rows, keys, R)
                live = ((bucket[:, :, part, None] == its_bucket[:, :, None]) & (near >= 0) & (near <= 1)).any(-1)
                if own:
                    live = live & (at[part, None] >= at if itself else at[part, None] > at)
                scores = (q[:, :, part] @ keys.transpose(-1, -2)) * scale
                scores = scores.to(torch.promote_types(q.dtype, torch.float32))
                parts.append(scores.masked_fill(~live, float("-inf")))
            weights = torch.cat(parts, -1)
            nothing = (weights == float("-inf")).all(-1, keepdim=True)
            weights = weights.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0).to(q.dtype)
            past, own_weights = weights.split((slots, n), -1)
            out.append(past @ self.values + own_weights @ v)
            alone.append(nothing)
        return torch.cat(out, 2), torch.cat(alone, 2)

    def keep(self, k: Tensor, v: Tensor, bucket: Tensor, chunk: Tensor, lengths: Tensor | None) -> None:
        """Takes new tokens in, and gives up what lies more than a chunk back in every round."""
        n = k.shape[2]
        position, exists = existing(self.positions, n, lengths)
        upcoming = self.positions + exists.sum(1)

        def last(bucket: Tensor, chunk: Tensor) -> Tensor:
            # The next token of a bucket begins or fills this chunk, and sees the one before.
            following = self.counts.transpose(-1, -2).gather(2, bucket.clamp(min=0)) // self.size
            visible = ((chunk >= following - 1) & (bucket >= 0) & (bucket < self.counts.shape[-1] - 1)).any(-1)
            return torch.where(visible, NEVER_ENDS, -1)

        self.last = torch.where(self.position >= 0, last(self.bucket, self.chunk), -1)
        self._new = bucket, chunk
        self.add(k, v, position[:, None].expand(k.shape[:3]), last(bucket, chunk), upcoming)
        self.positions = upcoming
        self.seen += n

    def _scattered(self, slot: Tensor) -> None:
        for store, new in zip((self.bucket, self.chunk), self._new, strict=True):
            store.scatter_(2, slot[..., None].expand_as(new), new)

    def _make_room(self, wanted: Tensor, after: Tensor) -> None:
        super()._make_room(wanted, after)
        more = self.keys.shape[2] - self.bucket.shape[2]
        self.bucket, self.chunk = (F.pad(x, (0, 0, 0, more), value=-1) for x in (self.bucket, self.chunk))
