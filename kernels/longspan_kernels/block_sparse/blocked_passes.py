"""The forward and backward passes of the plain-torch backend, over the pieces that `blocked.py` cuts.

Legend: as in blocked.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse import fused, fused_pieces
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.blocked import NEGATIVE, Piece, RowBatch, cut, gathered, pieces, split_width
from longspan_kernels.block_sparse.layout import Layout

DEAD_ROW = fused.DEAD_ROW


def blocked_forward(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> tuple[Tensor, Tensor]:
    """q [B, H, Tq, D], k and v [B, Hkv, Tk, D] -> out in q's dtype, lse [B, H, Tq] (float32, float64 for float64)."""
    if fused.takes(q, options):
        out, lse = _forward(q, k, v, layout, options, fused_pieces.forward_piece)
        if not fused.too_large(lse):
            return out, lse
    return _forward(q, k, v, layout, options, _forward_piece)


def _forward(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options, forward_piece) -> tuple[Tensor, Tensor]:
    """The forward pass, with one way or another to do a piece."""
    B, H, Tq, D = q.shape
    exact = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros((B, H, Tq, D), dtype=exact)
    lse = q.new_full((B, H, Tq), float("-inf"), dtype=exact)
    for component in layout.components:
        for piece, batches in pieces(component, layout, options, q):
            values, sums = forward_piece(piece, batches, q, k, v)
            _merge_into(out, lse, piece, values, sums)
    return out.to(q.dtype), lse


def _forward_piece(piece: Piece, batches, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [G, blocks, bq, D] and log-sum-exp [G, blocks, bq, 1] of one piece, in its order."""
    c, o = piece.component, piece.options
    qo = piece.ordered(q, True, piece.heads) * o.scale
    ko = piece.ordered(k, False, piece.kv_heads(k, q.shape[1]))
    vo = piece.ordered(v, False, piece.kv_heads(v, q.shape[1]))
    G, blocks, bq, D = qo.shape
    out = torch.zeros_like(qo)
    lse = qo.new_full((G, blocks, bq, 1), float("-inf"))
    for whole in batches:
        split = whole.count > split_width(c.block_k)
        for batch in cut(whole, G, c.block_q, c.block_k):
            s, _, _ = piece.scores(qo, ko, batch)
            R, _n = batch.index.shape
            top = s.amax(-1, keepdim=True).clamp_(min=NEGATIVE)  # finite where a bias of -inf closes all of a row
            p = s.sub_(top).exp_()
            total = p.sum(-1, keepdim=True)
            dead = top <= NEGATIVE / 2
            part_lse = torch.where(dead, float("-inf"), top + total.log())
            if o.dropout_p > 0.0:
                p.mul_(piece.kept(batch)).mul_(1.0 / (1.0 - o.dropout_p))
            values = gathered(vo, batch)
            part = torch.bmm(p.view(G * R, bq, -1), values).view(G, R, bq, D)
            part = part.mul_(torch.where(dead, 0.0, 1.0 / total))
            if not split:
                out[:, batch.rows] = part
                lse[:, batch.rows] = part_lse
            else:
                merged, merged_lse = merge(out[:, batch.rows], lse[:, batch.rows], part, part_lse)
                out[:, batch.rows] = merged
                lse[:, batch.rows] = merged_lse
    return out, lse


def merge(a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint key sets: outputs [..., D] with their log-sum-exps [..., 1]."""
    total = torch.logaddexp(a_lse, b_lse)
    safe = torch.where(total == float("-inf"), 0.0, total)
    return a * (a_lse - safe).exp() + b * (b_lse - safe).exp(), total


def _merge_into(out: Tensor, lse: Tensor, piece: Piece, values: Tensor, sums: Tensor) -> None:
    """Writes a piece's result to the token rows it belongs to, merging with what earlier components left there."""
    Tq, D = out.shape[2], out.shape[3]
    part, rows = piece.restored(values, True, Tq)
    part_lse, _ = piece.restored(sums, True, Tq)
    where = (piece.batch, piece.heads)
    shape = out[where].shape[:2]
    part, part_lse = part.view(*shape, -1, D), part_lse.reshape(*shape, -1)
    fresh = not bool(piece.component.merge[piece.head_numbers[0]])
    if fresh and not bool(piece.component.merge[piece.head_numbers].any()):
        if rows is None:
            out[where], lse[where] = part, part_lse
        else:
            _assign(out, where, rows, part)
            _assign(lse, where, rows, part_lse)
        return
    old, old_lse = out[where], lse[where]
    if rows is not None:
        old, old_lse = old.index_select(2, rows), old_lse.index_select(2, rows)
    new, new_lse = merge(old, old_lse[..., None], part, part_lse[..., None])
    if rows is None:
        out[where], lse[where] = new, new_lse[..., 0]
    else:
        _assign(out, where, rows, new)
        _assign(lse, where, rows, new_lse[..., 0])


def _assign(target: Tensor, where, rows: Tensor, values: Tensor) -> None:
    batch, heads = where
    if isinstance(heads, slice):
        target[batch, heads].index_copy_(2, rows, values)
    else:
        whole = target[batch, heads]
        whole.index_copy_(2, rows, values)
        target[batch, heads] = whole


def blocked_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Layout,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and the block bias, from the merged log-sum-exp: ds = p * (dp - delta + dlse)."""
    exact = torch.promote_types(q.dtype, torch.float32)
    if fused.takes(q, options) and not fused.too_large(lse):
        return *fused_pieces.backward(dout, dlse, q, k, v, out, lse, layout, options), None
    delta = (dout.to(exact) * out.to(exact)).sum(-1)
    if dlse is not None:
        delta = delta - torch.where(torch.isinf(lse), 0.0, dlse)
    floor = torch.where(torch.isinf(lse), DEAD_ROW, lse)
    dq, dk, dv = (torch.zeros(x.shape, dtype=exact, device=x.device) for x in (q, k, v))
    dbias = None if options.bias is None else torch.zeros_like(options.bias, dtype=exact)
    for component in layout.components:
        for piece, batches in pieces(component, layout, options, q):
            parts = _backward_piece(piece, batches, dout, q, k, v, floor, delta, dbias)
            add_into(dq, piece, parts[0], True, q.shape[1])
            add_into(dk, piece, parts[1], False, q.shape[1])
            add_into(dv, piece, parts[2], False, q.shape[1])
    if dbias is not None and options.bias is not None:
        dbias = dbias.to(options.bias.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dbias


def _backward_piece(piece: Piece, batches, dout, q, k, v, lse, delta, dbias) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one piece, in its order."""
    c, o = piece.component, piece.options
    qo = piece.ordered(q, True, piece.heads) * o.scale
    ko = piece.ordered(k, False, piece.kv_heads(k, q.shape[1]))
    vo = piece.ordered(v, False, piece.kv_heads(v, q.shape[1]))
    do = piece.ordered(dout, True, piece.heads)
    lo, de = piece.ordered_rows(lse, DEAD_ROW), piece.ordered_rows(delta, 0.0)
    G, _blocks, bq, D = qo.shape
    dq, dk, dv = torch.zeros_like(qo), torch.zeros_like(ko), torch.zeros_like(vo)
    for whole in batches:
        split = whole.count > split_width(c.block_k)
        for batch in cut(whole, G, c.block_q, c.block_k):
            R, n = batch.index.shape
            s, rows, keys = piece.scores(qo, ko, batch)
            p = s.sub_(lo[:, batch.rows]).exp_()
            grad = do[:, batch.rows].reshape(G * R, bq, D)
            values = gathered(vo, batch)
            dp = torch.bmm(grad, values.transpose(1, 2)).view_as(p)
            if o.dropout_p > 0.0:
                kept = piece.kept(batch).to(p.dtype).mul_(1.0 / (1.0 - o.dropout_p))
                dp.mul_(kept)
                weights = p * kept
            else:
                weights = p
            dv_part = torch.bmm(weights.view(G * R, bq, -1).transpose(1, 2), grad)
            ds = dp.sub_(de[:, batch.rows]).mul_(p)
            dq_part = torch.bmm(ds.view(G * R, bq, -1), keys).view(G, R, bq, D)
            dk_part = torch.bmm(ds.view(G * R, bq, -1).transpose(1, 2), rows)
            if split:
                dq[:, batch.rows] += dq_part
            else:
                dq[:, batch.rows] = dq_part
            _scatter_tiles(dk, batch, dk_part.view(G, R, n, c.block_k, D))
            _scatter_tiles(dv, batch, dv_part.view(G, R, n, c.block_k, D))
            if dbias is not None:
                _add_bias(dbias, piece, batch, ds)
    return dq.mul_(o.scale), dk, dv


def _scatter_tiles(target: Tensor, batch: RowBatch, parts: Tensor) -> None:
    """target [G, blocks, bk, D] gains parts [G, R, n, bk, D] at the tiles that the rows visit, in a fixed order."""
    if batch.own:
        target[:, batch.rows] += parts[:, :, 0]
    else:
        target.index_add_(1, batch.index.flatten(), parts.flatten(1, 2))


def _add_bias(dbias: Tensor, piece: Piece, batch, ds: Tensor) -> None:
    c = piece.component
    R, n = batch.index.shape
    h = len(piece.head_numbers)
    sums = ds.view(-1, h, R, ds.shape[2], n, c.block_k).sum((0, 3, 5))  # (h, R, n)
    row, column = piece.bias_cells(batch)
    cell = (row * dbias.shape[2] + column).flatten()
    flat = dbias.view(dbias.shape[0], -1)
    if dbias.shape[0] == 1:
        flat[0].index_add_(0, cell, sums.sum(0).flatten())
    else:
        for place, head in enumerate(piece.head_numbers):
            flat[head].index_add_(0, cell, sums[place].flatten())


def add_into(target: Tensor, piece: Piece, values: Tensor, queries: bool, H: int) -> None:
    """Adds a piece's gradient to the token rows and heads it belongs to."""
    length, D = target.shape[2], target.shape[3]
    part, rows = piece.restored(values, queries, length)
    batch = target[piece.batch]
    part = part.view(batch.shape[0], len(piece.head_numbers), -1, D)
    repeat = H // target.shape[1]
    if repeat > 1:
        # Query heads of one key/value head add in the order of their number.
        for place, head in enumerate(piece.head_numbers):
            own = batch[:, head // repeat]
            own += part[:, place] if rows is None else 0
            if rows is not None:
                own.index_add_(1, rows, part[:, place])
        return
    if isinstance(piece.heads, slice):
        own = batch[:, piece.heads]
        if rows is None:
            own += part
        else:
            own.index_add_(2, rows, part)
        return
    for place, head in enumerate(piece.heads):
        own = batch[:, head]
        if rows is None:
            own += part[:, place]
        else:
            own.index_add_(1, rows, part[:, place])
