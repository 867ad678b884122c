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

from longspan_kernels.block_sparse.reference import keep
from longspan_kernels.selected.options import Selection

SCORES_AT_ONCE = 1 << 21  # of gathered queries with one block: they stay in the cache of a processor


@dataclass(frozen=True)
class Tile:
    """Queries of one sequence and head group, and the one block that they all picked."""

    b: int
    heads: slice
    kv: int
    token: Tensor  # (L)
    keys: slice
    live: Tensor | None  # (L, S) bool, None where all pairs are


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
    if chosen.causal and int(token[0]) < keys.stop - 1:  # tokens of a list rise
        live = torch.arange(keys.start, keys.stop, device=token.device) <= token[:, None]
    if chosen.segments is not None:
        same = chosen.segments[b, token][:, None] == chosen.segments[b, keys]
        live = same if live is None else live & same
    return live


def _scores(q: Tensor, k: Tensor, tile: Tile, chosen: Selection) -> tuple[Tensor, Tensor, Tensor]:
    """Gathered queries [G, L, D], keys [S, D] and scores [G, L, S]."""
    queries, keys = q[tile.b, tile.heads][:, tile.token], k[tile.b, tile.kv, tile.keys]
    scores = (queries * chosen.scale) @ keys.T
    return queries, keys, scores if tile.live is None else scores.masked_fill_(~tile.live, float("-inf"))


def _survivors(tile: Tile, chosen: Selection, heads: int) -> Tensor | None:
    """[G, L, S]: 1 / (1 - p) where a weight stays, 0 where it falls away; None without dropout."""
    if chosen.seed is None:
        return None
    device = tile.token.device
    head = tile.b * heads + torch.arange(tile.heads.start, tile.heads.stop, device=device)
    j = torch.arange(tile.keys.start, tile.keys.stop, device=device)
    kept = keep(chosen.seed, head[:, None, None], tile.token[:, None], j, chosen.dropout_p)
    return kept / (1.0 - chosen.dropout_p)


def torch_forward(q: Tensor, k: Tensor, v: Tensor, chosen: Selection) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D] and lse [B, H, T]."""
    exact = torch.promote_types(q.dtype, torch.float32)
    dtype, (q, k, v) = q.dtype, (x.to(exact) for x in (q, k, v))
    out = torch.zeros(q.shape, dtype=exact, device=q.device)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=exact, device=q.device)
    for tile in tiles(q, k, chosen):
        _, _, scores = _scores(q, k, tile, chosen)
        before = lse[tile.b, tile.heads][:, tile.token]  # (G, L)
        # The largest so far: what came before and this block are scaled to it, so that only sums are merged.
        m_i = torch.maximum(before, scores.amax(-1))
        m_i = m_i.masked_fill(m_i == float("-inf"), 0.0)
        weights = scores.sub_(m_i[..., None]).exp_()
        old = (before - m_i).exp_()
        l_i = old + weights.sum(-1)
        kept = _survivors(tile, chosen, q.shape[1])
        part = (weights if kept is None else weights * kept) @ v[tile.b, tile.kv, tile.keys]
        part += out[tile.b, tile.heads][:, tile.token] * old[..., None]
        part /= l_i.masked_fill(l_i == 0.0, 1.0)[..., None]
        out[tile.b, tile.heads].index_copy_(1, tile.token, part)
        lse[tile.b, tile.heads].index_copy_(1, tile.token, l_i.log_().add_(m_i))
    return out.to(dtype), lse


def torch_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, chosen: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; every sum has one order."""
    exact, heads = torch.promote_types(q.dtype, torch.float32), q.shape[1]
    dtypes = q.dtype, k.dtype, v.dtype
    q, k, v, dout, out = (x.to(exact) for x in (q, k, v, dout, out))
    dq, dk, dv = (torch.zeros(x.shape, dtype=exact, device=x.device) for x in (q, k, v))
    dout = dout.masked_fill((lse == float("-inf"))[..., None], 0.0)  # NaN may reach a query without keys
    delta = (dout * out).sum(-1)
    if dlse is not None:
        delta -= dlse.masked_fill(lse == float("-inf"), 0.0)
    lse = lse.masked_fill(lse == float("-inf"), float("inf"))  # a query without keys has no weights
    for tile in tiles(q, k, chosen):
        queries, keys, scores = _scores(q, k, tile, chosen)
        rows = dout[tile.b, tile.heads][:, tile.token]  # (G, L, D)
        weights = scores.sub_(lse[tile.b, tile.heads][:, tile.token][..., None]).clamp_(max=0.0).exp_()
        ds = rows @ v[tile.b, tile.kv, tile.keys].T  # (G, L, S)
        kept = _survivors(tile, chosen, heads)
        dropped = weights if kept is None else weights * kept
        dv[tile.b, tile.kv, tile.keys].addmm_(dropped.flatten(0, 1).T, rows.flatten(0, 1))
        if kept is not None:
            ds *= kept
        ds = ds.sub_(delta[tile.b, tile.heads][:, tile.token][..., None]).mul_(weights).mul_(chosen.scale)
        dk[tile.b, tile.kv, tile.keys].addmm_(ds.flatten(0, 1).T, queries.flatten(0, 1))
        dq[tile.b, tile.heads].index_add_(1, tile.token, ds @ keys)
    return dq.to(dtypes[0]), dk.to(dtypes[1]), dv.to(dtypes[2])
