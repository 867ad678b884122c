"""Attention inside buckets of tokens, in chunks of the order that the buckets make: the token's own chunk and the one before.

Chunks are cut in one of three ways:

- aligned: each bucket begins a chunk. A token's chunk follows from how many tokens of its bucket come before it, so causal
  attention sees nothing of what comes later, not even by which keys there are.
- sorted: the sequence, sorted by bucket, is cut wherever a chunk is full, and pairs need equal buckets (arXiv:2001.04451).
- around: the same, but pairs need no equal buckets, and the first chunk looks back to the last (transformers' Reformer).

Legend: N sequences (batch, head and round of hashing in one), T tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from longspan.attention.picked_blocks import order_by_block
from longspan_kernels.block_sparse import DeviceLayout, tile_side

CUTS = ("aligned", "sorted", "around")
SMALL_TILE = 16  # of plain torch: most chunks are half empty


@dataclass(frozen=True)
class Chunks:
    """An order of tokens cut into chunks.

    Attributes:
        order: [N, places] int64 token at each place, -1 for none.
        bucket: [N, T] int64 bucket of each token, -1 for tokens that stand nowhere.
        looks_back: [N, chunks] bool, whether a chunk sees the one before.
        before: [N, chunks] int64, which one that is.
        size: places a chunk.
        cut: one of CUTS.
    """

    order: Tensor
    bucket: Tensor
    looks_back: Tensor
    before: Tensor
    size: int
    cut: str

    @classmethod
    def of(cls, bucket: Tensor, buckets: int, size: int, cut: str) -> Chunks:
        """From bucket [N, T], from 0 up to `buckets`, -1 for tokens that stand nowhere."""
        N, T = bucket.shape
        if cut == "aligned":
            order, owner = (x[:, 0] for x in order_by_block(bucket[:, None], buckets, size))
            earlier = torch.nn.functional.pad(owner[:, :-1], (1, 0), value=-1)
            number = torch.arange(owner.shape[1], device=bucket.device).expand(N, -1)
            return cls(order, bucket, (owner == earlier) & (owner < buckets), (number - 1).clamp(min=0), size, cut)
        nowhere = bucket < 0
        order = torch.sort(torch.where(nowhere, buckets, bucket), dim=-1, stable=True).indices
        order = torch.where(nowhere.gather(-1, order), -1, order)
        order = torch.nn.functional.pad(order, (0, -T % size), value=-1)
        chunks = order.shape[1] // size
        number = torch.arange(chunks, device=bucket.device).expand(N, -1)
        if cut == "sorted":
            return cls(order, bucket, number > 0, (number - 1).clamp(min=0), size, cut)
        filled = -(-(~nowhere).sum(-1, keepdim=True) // size)  # (N, 1) chunks that hold a token: padding stands behind them
        before = torch.where(number > 0, number - 1, (filled - 1).clamp(min=0))
        return cls(order, bucket, (filled > 1).expand(N, chunks), before, size, cut)

    def numbers(self) -> Tensor:
        """[N, T] int32, such that a token sees another where its number is that of the other or one more."""
        N, places = self.order.shape
        T, device = self.bucket.shape[1], self.order.device
        chunk = (torch.arange(places, device=device) // self.size).expand(N, places)
        at = torch.where(self.order < 0, T, self.order)
        found = torch.zeros((N, T + 1), dtype=torch.int64, device=device).scatter(1, at, chunk)[:, :T]
        # Chunks of different buckets are kept two apart.
        return (found + 2 * self.bucket).int()

    def layout(self, q: Tensor, causal: bool, excluded: Tensor | None) -> DeviceLayout:
        """For q [N, 1, T, D]; `excluded` as `DeviceLayout` has it."""
        tile = tile_side(q, self.size) if q.is_cuda else SMALL_TILE
        N, places = self.order.shape
        tiles, chunks, device = self.size // tile, places // self.size, self.order.device
        holds = (self.order.view(N, chunks, tiles, tile) >= 0).any(-1)  # (N, chunks, tiles); the first ones of a chunk
        own = holds.sum(-1, keepdim=True)  # (N, chunks, 1)
        earlier = torch.where(self.looks_back[..., None], own.gather(1, self.before[..., None]), 0)
        place = torch.arange(2 * tiles, device=device)
        here = tiles * torch.arange(chunks, device=device)[:, None] + place - earlier
        index = torch.where(place < earlier, tiles * self.before[..., None] + place, here)  # (N, chunks, 2 tiles)
        if causal and self.cut != "around":  # what a bucket holds in later tiles of a chunk comes later
            own = torch.minimum(own, torch.arange(1, tiles + 1, device=device))
        count = torch.where(holds, earlier + own, 0).flatten(1)  # (N, chunks tiles)
        index = index.clamp(max=chunks * tiles - 1).repeat_interleave(tiles, 1)  # (N, chunks tiles, 2 tiles)
        order, T = self.order.view(N, chunks * tiles, tile), q.shape[2]
        if _may_read(q):
            order, index, count = _without_empty_tiles(order, index, count, holds.flatten(1))
        order, index, count = order.flatten(1)[:, None].int(), index[:, None].int(), count[:, None].int()
        return DeviceLayout(index, count, tile, tile, T, T, causal, order, order, excluded)


def _may_read(q: Tensor) -> bool:
    """Whether numbers may decide the sizes: on a CPU, and not where a graph is traced that other inputs go through."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or get_proxy_mode() is not None
    return q.device.type == "cpu" and not (traced or detect_fake_mode(q) or torch._C._are_functorch_transforms_active())


def _without_empty_tiles(order: Tensor, index: Tensor, count: Tensor, holds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Order [N, tiles, tile] and lists, [N, tiles, n] and [N, tiles], of the tiles that hold a token [N, tiles] alone."""
    number = holds.cumsum(1) - 1  # of the tiles that stay
    most = max(1, int(holds.sum(1).max()))
    old = torch.full((len(order), most + 1), -1, dtype=torch.int64, device=order.device)
    old = old.scatter(1, torch.where(holds, number, most), torch.arange(holds.shape[1]).expand_as(holds))[:, :most]
    stays, old = (old >= 0) & holds.gather(1, old.clamp(min=0)), old.clamp(min=0)  # (N, most)
    order = torch.where(stays[..., None], order.gather(1, old[..., None].expand(-1, -1, order.shape[2])), -1)
    index = index.gather(1, old[..., None].expand(-1, -1, index.shape[2]))
    index = number.clamp(min=0).gather(1, index.flatten(1)).view_as(index)
    return order, index, torch.where(stays, count.gather(1, old), 0)


def kept_of_even_buckets(length: int, buckets: int, size: int, rounds: int = 1) -> int:
    """Tokens in the last two chunks of their bucket in some round, as far as the bucket's next token sees them.

    Buckets hold equally many tokens, and rounds keep tokens independently of each other.
    """
    if length == 0:
        return 0
    tokens = -(-length // buckets)
    share = (tokens - size * max(0, tokens // size - 1)) / tokens
    return round(length * (1 - (1 - share) ** rounds))


def pairs_of_even_buckets(length: int, buckets: int, size: int, cut: str, causal: bool) -> tuple[int, int]:
    """(live, visited) pairs of one order, where every bucket holds equally many tokens; a token sees itself.

    Visited pairs are those of whole chunks.
    """
    if length == 0:
        return 0, 0
    if cut == "aligned":
        tokens = -(-length // buckets)
        chunks = -(-tokens // size)
        filled = [min(size, tokens - c * size) for c in range(chunks)]
        seen = sum(n * (n + 1) // 2 if causal else n * n for n in filled)
        seen += sum(a * b for a, b in zip(filled[1:], filled, strict=False))
        groups = -(-length // tokens)
        return min(groups * seen, length * length), groups * (2 * chunks - 1) * size * size
    chunks = -(-length // size)
    visited = (2 * chunks - (1 if cut == "sorted" or chunks == 1 else 0)) * size * size
    # A chunk and the one before hold 2 * size tokens, of which those of the own bucket count where pairs need it.
    near = min(length, 2 * size if cut == "around" else min(2 * size, -(-length // buckets)))
    live = length * near
    return (length + live) // 2 if causal else live, visited
