"""The forward and backward passes of the plain-torch backend, over the chunks that `blocked.py` makes.

On a CPU, where the keys of all rows are views of the ordered keys, torch's fused kernel does a batch of rows as one call of
many small problems. Elsewhere, and for gathered keys, batched matrix products do. Legend: as in blocked.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from longspan_kernels.block_sparse import fused
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.blocked import (
    GATHERED_AT_ONCE,
    NEGATIVE,
    Chunk,
    RowBatch,
    Workspace,
    chunks,
    fitting_batches,
    gathered,
    split_width,
)
from longspan_kernels.block_sparse.gradients import Gradient
from longspan_kernels.block_sparse.layout import Layout

DEAD_ROW = fused.DEAD_ROW


def blocked_forward(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> tuple[Tensor, Tensor]:
    """q [B, H, Tq, D], k and v [B, Hkv, Tk, D] -> out in q's dtype, lse [B, H, Tq] (float32, float64 for float64)."""
    out, lse, used = _forward(q, k, v, layout, options, fused.takes(q, options))
    if used and fused.too_large(lse):
        out, lse, _ = _forward(q, k, v, layout, options, False)
    return out, lse


def _forward(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options, may_fuse: bool) -> tuple[Tensor, Tensor, bool]:
    """The forward pass, and whether a chunk went to torch's fused kernel."""
    used = False
    B, H, Tq, D = q.shape
    exact = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros((B, H, Tq, D), dtype=exact)
    lse = q.new_full((B, H, Tq), float("-inf"), dtype=exact)
    for component in layout.components:
        for chunk, batches in chunks(component, layout, options, q):
            fuse = may_fuse and serves(batches)
            used = used or fuse
            forward_chunk = _fused_forward_chunk if fuse else _forward_chunk
            values, sums = forward_chunk(chunk, batches, q, k, v)
            _merge_into(out, lse, chunk, values, sums)
    return out.to(q.dtype), lse, used


def _forward_chunk(chunk: Chunk, batches, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [G, blocks, bq, D] and log-sum-exp [G, blocks, bq, 1] of one chunk, in its order."""
    c, o = chunk.component, chunk.options
    qo, ko, vo = chunk.inputs(q, k, v)
    qo = qo * o.scale
    G, blocks, bq, D = qo.shape
    out = torch.zeros_like(qo)
    lse = qo.new_full((G, blocks, bq, 1), float("-inf"))
    space = Workspace(qo)
    for whole in batches:
        split = whole.count > split_width(c.block_k)
        for batch in fitting_batches(whole, G, c.block_q, c.block_k):
            s, _, _ = chunk.scores(qo, ko, batch, space)
            R, _n = batch.index.shape
            m_i = s.amax(-1, keepdim=True).clamp_(min=NEGATIVE)  # finite where a bias of -inf closes all of a row
            p = s.sub_(m_i).exp_()
            l_i = p.sum(-1, keepdim=True)
            dead = m_i <= NEGATIVE / 2
            part_lse = torch.where(dead, float("-inf"), m_i + l_i.log())
            if o.dropout_p > 0.0:
                p.mul_(chunk.kept(batch)).mul_(1.0 / (1.0 - o.dropout_p))
            values = gathered(vo, batch, space, "values")
            part = space.product("out", p.view(G * R, bq, -1), values).view(G, R, bq, D)
            part = part.mul_(torch.where(dead, 0.0, 1.0 / l_i))
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
    l_i = torch.logaddexp(a_lse, b_lse)
    safe = torch.where(l_i == float("-inf"), 0.0, l_i)
    return a * (a_lse - safe).exp() + b * (b_lse - safe).exp(), l_i


def _merge_into(out: Tensor, lse: Tensor, chunk: Chunk, values: Tensor, sums: Tensor) -> None:
    """Writes a chunk's result to the token rows it belongs to, merging with what earlier components left there."""
    Tq, D = out.shape[2], out.shape[3]
    part, rows = chunk.restored(values, True, Tq)
    part_lse, _ = chunk.restored(sums, True, Tq)
    where = (chunk.batch, chunk.heads)
    shape = out[where].shape[:2]
    part, part_lse = part.view(*shape, -1, D), part_lse.reshape(*shape, -1)
    fresh = not bool(chunk.component.merge[chunk.head_numbers[0]])
    if fresh and not bool(chunk.component.merge[chunk.head_numbers].any()):
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
    may_fuse = fused.takes(q, options) and not fused.too_large(lse)
    delta = (dout.to(exact) * out.to(exact)).sum(-1)
    dead = torch.isinf(lse)
    if dlse is not None:
        dlse = torch.where(dead, 0.0, dlse)
        delta = delta - dlse
    floor = torch.where(dead, DEAD_ROW, lse)
    dbias = None if options.bias is None else torch.zeros_like(options.bias, dtype=exact)
    wide = None  # the tensors as torch's fused kernel wants them, once a chunk goes there
    grads = [Gradient(q, True), Gradient(k, False), Gradient(v, False)]
    for component in layout.components:
        for chunk, batches in chunks(component, layout, options, q):
            if may_fuse and serves(batches):
                if wide is None:
                    wide = [x.float() for x in (dout, out, q, k, v)]
                    wide = wide if dlse is None else fused.with_column(wide[0], dlse, *wide[1:])
                parts = _fused_backward_chunk(chunk, batches, wide, floor)
            else:
                parts = _backward_chunk(chunk, batches, dout, q, k, v, floor, delta, dbias)
            for grad, part in zip(grads, parts, strict=True):
                grad.add(chunk, part, q.shape[1])
    if dbias is not None and options.bias is not None:
        dbias = dbias.to(options.bias.dtype)
    dq, dk, dv = (grad.total(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv, dbias


def _backward_chunk(chunk: Chunk, batches, dout, q, k, v, lse, delta, dbias) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one chunk, in its order."""
    c, o = chunk.component, chunk.options
    qo, ko, vo = chunk.inputs(q, k, v)
    qo = qo * o.scale
    do = chunk.ordered(dout, True, chunk.heads)
    lo, de = chunk.ordered_rows(lse, DEAD_ROW), chunk.ordered_rows(delta, 0.0)
    G, _blocks, bq, D = qo.shape
    dq, dk, dv = torch.zeros_like(qo), torch.zeros_like(ko), torch.zeros_like(vo)
    space = Workspace(qo)
    for whole in batches:
        split = whole.count > split_width(c.block_k)
        for batch in fitting_batches(whole, G, c.block_q, c.block_k):
            R, n = batch.index.shape
            s, rows, keys = chunk.scores(qo, ko, batch, space)
            p = s.sub_(lo[:, batch.rows]).exp_()
            grad = do[:, batch.rows].reshape(G * R, bq, D)
            values = gathered(vo, batch, space, "values")
            dp = space.product("dp", grad, values.transpose(1, 2)).view_as(p)
            if o.dropout_p > 0.0:
                kept = chunk.kept(batch).to(p.dtype).mul_(1.0 / (1.0 - o.dropout_p))
                dp.mul_(kept)
                weights = p * kept
            else:
                weights = p
            dv_part = space.product("dv", weights.view(G * R, bq, -1).transpose(1, 2), grad)
            ds = dp.sub_(de[:, batch.rows]).mul_(p)
            dq_part = space.product("dq", ds.view(G * R, bq, -1), keys).view(G, R, bq, D)
            dk_part = space.product("dk", ds.view(G * R, bq, -1).transpose(1, 2), rows)
            if split:
                dq[:, batch.rows] += dq_part
            else:
                dq[:, batch.rows] = dq_part
            _scatter_tiles(dk, batch, dk_part.view(G, R, n, c.block_k, D))
            _scatter_tiles(dv, batch, dv_part.view(G, R, n, c.block_k, D))
            if dbias is not None:
                _add_bias(dbias, chunk, batch, ds)
    return dq.mul_(o.scale), dk, dv


def _scatter_tiles(target: Tensor, batch: RowBatch, parts: Tensor) -> None:
    """target [G, blocks, bk, D] gains parts [G, R, n, bk, D] at the tiles that the rows visit, in a fixed order."""
    if batch.own:
        target[:, batch.rows] += parts[:, :, 0]
    else:
        target.index_add_(1, batch.index.flatten(), parts.flatten(1, 2))


def _add_bias(dbias: Tensor, chunk: Chunk, batch, ds: Tensor) -> None:
    c = chunk.component
    R, n = batch.index.shape
    h = len(chunk.head_numbers)
    sums = ds.view(-1, h, R, ds.shape[2], n, c.block_k).sum((0, 3, 5))  # (h, R, n)
    row, column = chunk.bias_cells(batch)
    cell = (row * dbias.shape[2] + column).flatten()
    flat = dbias.view(dbias.shape[0], -1)
    if dbias.shape[0] == 1:
        flat[0].index_add_(0, cell, sums.sum(0).flatten())
    else:
        for place, head in enumerate(chunk.head_numbers):
            flat[head].index_add_(0, cell, sums[place].flatten())


def fused_batches(batch: RowBatch, pairs: int, per_tile: int) -> Iterator[RowBatch]:
    """Chunks of a row batch whose gathered keys (or their gradients) fit, `per_tile` elements each tile."""
    step = len(batch.index) if batch.shared else max(1, GATHERED_AT_ONCE // (pairs * per_tile * batch.count))
    for r in range(0, len(batch.index), step):
        rows = (
            batch.rows[r : r + step]
            if isinstance(batch.rows, Tensor)
            else slice(batch.rows.start + r, min(batch.rows.stop, batch.rows.start + r + step))
        )
        kinds = None if batch.kinds is None else batch.kinds[r : r + step]
        first = batch.first + r if batch.window else batch.first
        yield replace(batch, rows=rows, index=batch.index[r : r + step], kinds=kinds, first=first)


def keys_of(x: Tensor, batch: RowBatch, space: Workspace, name: str) -> Tensor:
    """x [G, blocks, bk, D] -> [G, R or 1, n * bk, D], the key tiles of each row side by side; a view where rows are regular."""
    G, _, block, D = x.shape
    R, n = batch.index.shape
    if batch.shared:
        return x[:, batch.first : batch.first + n].reshape(G, 1, n * block, D)
    if batch.window:
        strides = (x.stride(0), block * D, D, 1)
        return x.as_strided((G, R, n * block, D), strides, x.storage_offset() + batch.first * block * D)
    tiles = space.take(name, G, R * n, block, D)
    return torch.index_select(x, 1, batch.index.flatten(), out=tiles).view(G, R, n * block, D)


def add_to_tiles(target: Tensor, batch: RowBatch, parts: Tensor) -> None:
    """target [G, blocks, bk, D] gains parts [G, R or 1, n * bk, D], in a fixed order: the transpose of `keys_of`."""
    G, _, block, D = target.shape
    R, n = batch.index.shape
    if batch.shared:
        target[:, batch.first : batch.first + n] += parts.reshape(G, n, block, D)
    elif batch.window and n <= R:
        for place in range(n):
            target[:, batch.first + place : batch.first + place + R] += parts[:, :, place * block : (place + 1) * block]
    else:
        target.index_add_(1, batch.index.flatten(), parts.reshape(G, R * n, block, D))


def rows_of(x: Tensor, batch: RowBatch) -> Tensor:
    """x [G, blocks, bq, ...] -> [G, R, bq, ...], or [G, 1, R * bq, ...] where rows share their keys."""
    chosen = x[:, batch.rows]
    return chosen.flatten(1, 2).unsqueeze(1) if batch.shared else chosen


def additive(chunk: Chunk, batch: RowBatch, pairs: int) -> Tensor | None:
    """The mask of a row batch as the kernel adds it: [G or 1, R or 1, bq (all rows' where shared), n * bk]."""
    limited = chunk.options.per_batch or chunk.component.dynamic
    if batch.alike and not limited and batch.kinds is not None:
        batch = replace(batch, index=batch.index[:1], kinds=batch.kinds[:1])
    live = chunk.mask(batch)
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


def serves(batches: list[RowBatch]) -> bool:
    """Whether torch's kernel is the quicker way: where the keys of a row are a view of several tiles.

    One tile, and gathered ones, are for plain products: they take all queries of a tile at once, where this kernel takes 32.
    """
    return all((batch.window and not batch.own) or batch.shared for batch in batches)


def _result(shape: tuple[int, ...], batches: list[RowBatch], blocks: int, fill: float = 0.0) -> Tensor:
    """A tensor for the rows of all batches: written out only where some row is in none, as new memory costs time."""
    covered = sum(len(batch.index) for batch in batches) == blocks
    return torch.empty(shape) if covered else torch.full(shape, fill)


def _fused_forward_chunk(chunk: Chunk, batches: list[RowBatch], q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [G, blocks, bq, D] and log-sum-exp [G, blocks, bq, 1] of one chunk, in its order."""
    c, scale = chunk.component, chunk.options.scale
    qo, ko, vo = chunk.inputs(q, k, v)
    ko, vo = ko.contiguous(), vo.contiguous()
    G, blocks, bq, D = qo.shape
    out = _result(qo.shape, batches, blocks)
    lse = _result((G, blocks, bq, 1), batches, blocks, float("-inf"))
    space = Workspace(qo)
    for whole in batches:
        for batch in fused_batches(whole, G, c.block_k * D):
            keys, values = keys_of(ko, batch, space, "k"), keys_of(vo, batch, space, "v")
            part, sums = fused.attend_forward(rows_of(qo, batch), keys, values, False, additive(chunk, batch, G), scale)
            R = len(batch.index)
            out[:, batch.rows] = part.reshape(G, R, bq, D)
            lse[:, batch.rows] = sums.reshape(G, R, bq, 1)
    return out, lse


def _fused_backward_chunk(
    chunk: Chunk, batches: list[RowBatch], tensors: list[Tensor], floor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one chunk, in its order, from [dout, out, q, k, v]; `floor` is the log-sum-exp, DEAD_ROW without keys."""
    dout, out, q, k, v = tensors
    c, scale = chunk.component, chunk.options.scale
    qo, ko, vo = chunk.inputs(q, k, v)
    ko, vo = ko.contiguous(), vo.contiguous()
    do, oo = (chunk.ordered(x, True, chunk.heads) for x in (dout, out))
    lo = chunk.ordered_rows(floor, fused.DEAD_ROW)
    G, blocks, bq, D = qo.shape
    dq, dk, dv = _result(qo.shape, batches, blocks), torch.zeros(ko.shape), torch.zeros(vo.shape)
    space = Workspace(qo)
    for whole in batches:
        for batch in fused_batches(whole, G, c.block_k * D):
            rows = [rows_of(x, batch) for x in (do, qo, oo, lo)]
            keys, values = keys_of(ko, batch, space, "k"), keys_of(vo, batch, space, "v")
            mask = additive(chunk, batch, G)
            found = fused.attend_backward(rows[0], rows[1], keys, values, rows[2], rows[3][..., 0], False, mask, scale)
            dq[:, batch.rows] = found[0].reshape(G, len(batch.index), bq, D)
            add_to_tiles(dk, batch, found[1])
            add_to_tiles(dv, batch, found[2])
    return dq, dk, dv
