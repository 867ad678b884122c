"""The blocked backend's passes by torch's fused CPU kernel: each batch of rows is one call of many small problems.

Windows and rows that see the same keys are views of the ordered keys; other rows gather theirs. Nothing here loops over rows:
batches are as many as kinds of rows, and are cut only where gathered keys would outgrow the cache.

Legend: as in blocked.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from longspan_kernels.block_sparse import fused
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.blocked import GATHERED_AT_ONCE, NEGATIVE, Piece, RowBatch, pieces
from longspan_kernels.block_sparse.layout import Layout


def cut(batch: RowBatch, pairs: int, per_tile: int) -> Iterator[RowBatch]:
    """Pieces of a row batch whose gathered keys (or their gradients) fit, `per_tile` elements each tile."""
    step = len(batch.index) if batch.shared else max(1, GATHERED_AT_ONCE // (pairs * per_tile * batch.count))
    for r in range(0, len(batch.index), step):
        rows = batch.rows[r : r + step] if isinstance(batch.rows, Tensor) else slice(
            batch.rows.start + r, min(batch.rows.stop, batch.rows.start + r + step)
        )  # fmt: skip
        kinds = None if batch.kinds is None else batch.kinds[r : r + step]
        first = batch.first + r if batch.window else batch.first
        yield replace(batch, rows=rows, index=batch.index[r : r + step], kinds=kinds, first=first)


def keys_of(x: Tensor, batch: RowBatch) -> Tensor:
    """x [G, blocks, bk, D] -> [G, R or 1, n * bk, D], the key tiles of each row side by side; a view where rows are regular."""
    G, _, block, D = x.shape
    R, n = batch.index.shape
    if batch.shared:
        return x[:, batch.first : batch.first + n].reshape(G, 1, n * block, D)
    if batch.window:
        strides = (x.stride(0), block * D, D, 1)
        return x.as_strided((G, R, n * block, D), strides, x.storage_offset() + batch.first * block * D)
    return x.index_select(1, batch.index.flatten()).view(G, R, n * block, D)


def add_to_tiles(target: Tensor, batch: RowBatch, parts: Tensor) -> None:
    """target [G, blocks, bk, D] gains parts [G, R or 1, n * bk, D], in a fixed order: the transpose of `keys_of`."""
    G, _, block, D = target.shape
    R, n = batch.index.shape
    if batch.shared:
        target[:, batch.first : batch.first + n] += parts.reshape(G, n, block, D)
    elif batch.window and n <= R:
        for slot in range(n):
            target[:, batch.first + slot : batch.first + slot + R] += parts[:, :, slot * block : (slot + 1) * block]
    else:
        target.index_add_(1, batch.index.flatten(), parts.reshape(G, R * n, block, D))


def rows_of(x: Tensor, batch: RowBatch) -> Tensor:
    """x [G, blocks, bq, ...] -> [G, R, bq, ...], or [G, 1, R * bq, ...] where rows share their keys."""
    chosen = x[:, batch.rows]
    return chosen.flatten(1, 2).unsqueeze(1) if batch.shared else chosen


def additive(piece: Piece, batch: RowBatch, pairs: int) -> Tensor | None:
    """The mask of a row batch as the kernel adds it: [G or 1, R or 1, bq (all rows' where shared), n * bk]."""
    limited = piece.options.per_batch or piece.component.dynamic
    if batch.alike and not limited and batch.kinds is not None:
        batch = replace(batch, index=batch.index[:1], kinds=batch.kinds[:1])
    live = piece.mask(batch)
    if live is None:
        return None
    b, _, R, bq, keys = torch.broadcast_shapes(live.shape, (1, 1, 1, 1, 1))
    mask = torch.zeros(live.shape, device=live.device).masked_fill_(~live, NEGATIVE)
    if live.shape[0] > 1:
        mask = mask.expand(b, pairs // b, R, bq, keys).reshape(pairs, R, bq, keys)
    else:
        mask = mask.reshape(1, R, bq, keys)
    if not batch.shared:
        return mask
    return mask.expand(-1, len(batch.index), -1, -1).reshape(mask.shape[0], 1, -1, keys)


def forward_piece(piece: Piece, batches: list[RowBatch], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [G, blocks, bq, D] and log-sum-exp [G, blocks, bq, 1] of one piece, in its order."""
    c, scale = piece.component, piece.options.scale
    qo = piece.ordered(q, True, piece.heads)
    ko = piece.ordered(k, False, piece.kv_heads(k, q.shape[1])).contiguous()
    vo = piece.ordered(v, False, piece.kv_heads(v, q.shape[1])).contiguous()
    G, blocks, bq, D = qo.shape
    out = torch.zeros(qo.shape)
    lse = torch.full((G, blocks, bq, 1), float("-inf"))
    for whole in batches:
        for batch in cut(whole, G, c.block_k * D):
            mask = additive(piece, batch, G)
            part, sums = fused.attend_forward(rows_of(qo, batch), keys_of(ko, batch), keys_of(vo, batch), False, mask, scale)
            R = len(batch.index)
            out[:, batch.rows] = part.reshape(G, R, bq, D)
            lse[:, batch.rows] = sums.reshape(G, R, bq, 1)
    return out, lse


def backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, layout: Layout,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v from the merged output and log-sum-exp."""
    from longspan_kernels.block_sparse.blocked_passes import add_into

    kinds, D, H = (q.dtype, k.dtype, v.dtype), q.shape[3], q.shape[1]
    dout, out, q, k, v = (x.float() for x in (dout, out, q, k, v))
    floor = torch.where(torch.isinf(lse), fused.DEAD_ROW, lse)
    if dlse is not None:
        dout, out, q, k, v = fused.with_column(dout, torch.where(torch.isinf(lse), 0.0, dlse), out, q, k, v)
    grads = [torch.zeros(x.shape) for x in (q, k, v)]
    for component in layout.components:
        for piece, batches in pieces(component, layout, options, q):
            for grad, part, queries in zip(
                grads, _backward_piece(piece, batches, dout, q, k, v, out, floor), (True, False, False), strict=True
            ):
                add_into(grad, piece, part, queries, H)
    dq, dk, dv = (grad[..., :D].to(kind).contiguous() for grad, kind in zip(grads, kinds, strict=True))
    return dq, dk, dv


def _backward_piece(piece: Piece, batches: list[RowBatch], dout, q, k, v, out, floor) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one piece, in its order."""
    c, scale = piece.component, piece.options.scale
    qo, do, oo = (piece.ordered(x, True, piece.heads) for x in (q, dout, out))
    ko = piece.ordered(k, False, piece.kv_heads(k, q.shape[1])).contiguous()
    vo = piece.ordered(v, False, piece.kv_heads(v, q.shape[1])).contiguous()
    lo = piece.ordered_rows(floor, fused.DEAD_ROW)
    G, _, bq, D = qo.shape
    dq, dk, dv = torch.zeros(qo.shape), torch.zeros(ko.shape), torch.zeros(vo.shape)
    for whole in batches:
        for batch in cut(whole, G, c.block_k * D):
            rows = [rows_of(x, batch) for x in (do, qo, oo, lo)]
            found = fused.attend_backward(
                rows[0], rows[1], keys_of(ko, batch), keys_of(vo, batch), rows[2], rows[3][..., 0], False,
                additive(piece, batch, G), scale,
            )  # fmt: skip
            dq[:, batch.rows] = found[0].reshape(G, len(batch.index), bq, D)
            add_to_tiles(dk, batch, found[1])
            add_to_tiles(dv, batch, found[2])
    return dq, dk, dv
