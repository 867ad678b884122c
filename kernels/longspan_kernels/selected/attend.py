"""Selected attention in plain torch: block after block, the queries that picked it are gathered and their outputs merged.

It waits for the device once a pass (for the lengths of the lists), so it is meant for CPUs and for dtypes that Triton's kernels
do not take. Memory beside the tensors is that of one block's scores, some rows at a time.

Legend: B batch, H heads, Hkv key/value heads, P heads that pick for themselves, G = H / P, T tokens, D head width, n picks a
query, L gathered queries, S keys of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.block_sparse.blocked import Workspace
from longspan_kernels.block_sparse.reference import keep
from longspan_kernels.selected.options import Selection

SCORES_AT_ONCE = 1 << 18  # of gathered queries with one block: they stay in the cache of a processor


@dataclass(frozen=True)
class Tile:
    """Queries of one sequence and head group, and the one block that they all picked."""

    b: int
    heads: slice
    kv: int
    token: Tensor  # (L)
    keys: slice
    live: Tensor | None  # (queries, S) bool, of as many of the first; None where all pairs are


def tiles(q: Tensor, k: Tensor, chosen: Selection) -> Iterator[Tile]:
    """All pairs of queries with a block that they picked, blocks of one head in rising order."""
    (B, P, T, n), size, H = chosen.picks.shape, chosen.block_size, q.shape[1]
    repeat, bounds = P // k.shape[1], chosen.start.tolist()
    ends = [T] * B if chosen.lengths is None else chosen.lengths.clamp(0, T).tolist()
    rows = max(1, SCORES_AT_ONCE // (size * (H // P)))
    for list_row in range(B * P):
        b, p = divmod(list_row, P)
        heads = slice(p * (H // P), (p + 1) * (H // P))
        for block in range(chosen.blocks):
            start, stop = bounds[list_row * chosen.blocks + block : list_row * chosen.blocks + block + 2]
            keys = slice(block * size, min((block + 1) * size, ends[b]))
            if keys.start >= keys.stop:
                continue
            for first in range(start, stop, rows):
                entries = chosen.order[first : min(first + rows, stop)].long()
                token = (entries - list_row * T * n).div_(n, rounding_mode="floor")
                yield Tile(b, heads, p // repeat, token, keys, _live(chosen, b, token, keys))


def _live(chosen: Selection, b: int, token: Tensor, keys: slice) -> Tensor | None:
    live = None
    if chosen.causal and int(token[0]) < keys.stop - 1:
        early = len(token) if chosen.segments is not None else int(torch.searchsorted(token, keys.stop - 1))
        within = token[:early]  # tokens rise: later ones see all keys of the block
        live = torch.arange(keys.start, keys.stop, device=token.device) <= within[:, None]
    if chosen.segments is not None:
        same = chosen.segments[b, token][:, None] == chosen.segments[b, keys]
        live = same if live is None else live & same
    return live


def _by_token(x: Tensor, pickers: int) -> Tensor:
    """x [B, H, T, ...] -> [B, P, T, G, ...], contiguous: what a query's heads hold is gathered as one row."""
    return x.unflatten(1, (pickers, -1)).transpose(2, 3).contiguous()


def _by_head(x: Tensor) -> Tensor:
    """The way back."""
    return x.transpose(2, 3).flatten(1, 2).contiguous()


class _Space(Workspace):
    """Buffers that all tiles share."""

    def gather(self, name: str, x: Tensor, token: Tensor) -> Tensor:
        """Rows of x [T, G, ...] -> [L G, ...]."""
        rows = torch.index_select(x, 0, token, out=self.take(name, len(token), *x.shape[1:]))
        return rows.flatten(0, 1)

    def scores(self, queries: Tensor, keys: Tensor, tile: Tile) -> Tensor:
        """[L G, S] of scaled queries [L G, D] and keys [S, D]."""
        scores = torch.mm(queries, keys.T, out=self.take("scores", len(queries), len(keys)))
        if tile.live is not None:
            first = scores.view(len(tile.token), -1, len(keys))[: len(tile.live)]
            first.masked_fill_(~tile.live[:, None], float("-inf"))
        return scores


def _survivors(tile: Tile, chosen: Selection, heads: int) -> Tensor | None:
    """[L G, S]: 1 / (1 - p) where a weight stays, 0 where it falls away; None without dropout."""
    if chosen.seed is None:
        return None
    device = tile.token.device
    head = tile.b * heads + torch.arange(tile.heads.start, tile.heads.stop, device=device)
    j = torch.arange(tile.keys.start, tile.keys.stop, device=device)
    kept = keep(chosen.seed, head[:, None], tile.token[:, None, None], j, chosen.dropout_p)
    return kept.flatten(0, 1) / (1.0 - chosen.dropout_p)


def torch_forward(q: Tensor, k: Tensor, v: Tensor, chosen: Selection) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D] and lse [B, H, T]."""
    exact, P, heads = torch.promote_types(q.dtype, torch.float32), chosen.picks.shape[1], q.shape[1]
    dtype, (q, k, v) = q.dtype, (x.to(exact) for x in (q, k, v))
    queries = _by_token(q * chosen.scale, P)
    # Sums of weights, and of weighted values, relative to exp(largest so far): divided at the end.
    sums, total = torch.zeros_like(queries), queries.new_zeros(queries.shape[:4])
    largest = torch.full_like(total, float("-inf"))
    space = _Space(queries)
    for tile in tiles(q, k, chosen):
        at = tile.b, tile.heads.start // (heads // P)
        scores = space.scores(space.gather("q", queries[at], tile.token), k[tile.b, tile.kv, tile.keys], tile)
        before = space.gather("largest", largest[at], tile.token)  # (L G)
        m_i = torch.maximum(before, scores.amax(-1))
        safe = m_i.masked_fill(m_i == float("-inf"), 0.0)
        weights = scores.sub_(safe[:, None]).exp_()
        old = before.sub_(safe).exp_()
        l_i = space.gather("total", total[at], tile.token).mul_(old).add_(weights.sum(-1))
        if (kept := _survivors(tile, chosen, heads)) is not None:
            weights = weights * kept
        part = space.gather("sums", sums[at], tile.token).mul_(old[:, None])
        part.addmm_(weights, v[tile.b, tile.kv, tile.keys])
        for target, rows in ((sums, part), (total, l_i), (largest, m_i)):
            target[at].index_copy_(0, tile.token, rows.view(len(tile.token), *target.shape[3:]))
    sums.div_(total.masked_fill(total == 0.0, 1.0)[..., None])
    return _by_head(sums).to(dtype), _by_head(total.log_().add_(largest))


def torch_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, chosen: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; every sum has one order."""
    exact, P, heads = torch.promote_types(q.dtype, torch.float32), chosen.picks.shape[1], q.shape[1]
    dtypes = q.dtype, k.dtype, v.dtype
    q, k, v, dout, out = (x.to(exact) for x in (q, k, v, dout, out))
    keyless = lse == float("-inf")
    dout = dout.masked_fill(keyless[..., None], 0.0)  # NaN may reach a query without keys
    delta = (dout * out).sum(-1)
    if dlse is not None:
        delta -= dlse.masked_fill(keyless, 0.0)
    # A query without keys has no weights.
    delta, lse = _by_token(delta, P), _by_token(lse.masked_fill(keyless, float("inf")), P)
    queries, dout = _by_token(q * chosen.scale, P), _by_token(dout, P)
    dq, dk, dv = torch.zeros_like(queries), torch.zeros_like(k), torch.zeros_like(v)
    space = _Space(queries)
    for tile in tiles(q, k, chosen):
        at, keys = (tile.b, tile.heads.start // (heads // P)), k[tile.b, tile.kv, tile.keys]
        own = space.gather("q", queries[at], tile.token)  # (L G, D)
        rows = space.gather("dout", dout[at], tile.token)
        weights = space.scores(own, keys, tile).sub_(space.gather("lse", lse[at], tile.token)[:, None])
        weights.clamp_(max=0.0).exp_()
        ds = torch.mm(rows, v[tile.b, tile.kv, tile.keys].T, out=space.take("ds", *weights.shape))
        kept = _survivors(tile, chosen, heads)
        dv[tile.b, tile.kv, tile.keys].addmm_((weights if kept is None else weights * kept).T, rows)
        if kept is not None:
            ds *= kept
        ds.sub_(space.gather("delta", delta[at], tile.token)[:, None]).mul_(weights)
        dk[tile.b, tile.kv, tile.keys].addmm_(ds.T, own)  # of scaled queries
        part = torch.mm(ds, keys, out=space.take("dq", *own.shape))
        dq[at].index_add_(0, tile.token, part.view(len(tile.token), *dq.shape[3:]))
    return _by_head(dq.mul_(chosen.scale)).to(dtypes[0]), dk.to(dtypes[1]), dv.to(dtypes[2])
