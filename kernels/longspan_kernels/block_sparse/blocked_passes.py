"""The forward and backward passes of the plain-torch backend, over the chunks that `blocked.py` makes.

A chunk goes to torch's fused kernel where `fused.serves` says that this is quicker, else to batched matrix products. Legend: as
in blocked.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse import fused
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.blocked import (
    NEGATIVE,
    Chunk,
    RowBatch,
    Workspace,
    chunks,
    fitting_batches,
    gathered,
    split_width,
)
from longspan_kernels.block_sparse.layout import Layout


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
    space = Workspace(out)
    for component in layout.components:
        for chunk, batches in chunks(component, layout, options, q):
            fuse = may_fuse and fused.serves(batches)
            used = used or fuse
            forward_chunk = fused.forward_chunk if fuse else _forward_chunk
            values, sums = forward_chunk(space, chunk, batches, q, k, v)
            _merge_into(out, lse, chunk, values, sums)
    return out.to(q.dtype), lse, used


def _forward_chunk(space: Workspace, chunk: Chunk, batches, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output [G, blocks, bq, D] and log-sum-exp [G, blocks, bq, 1] of one chunk, in its order and in `space`."""
    c, o = chunk.component, chunk.options
    qo, ko, vo = chunk.inputs(q, k, v, space)
    qo = qo if o.scale == 1.0 else qo * o.scale
    G, blocks, bq, D = qo.shape
    out = space.zeros("chunk_out", qo)
    lse = qo.new_full((G, blocks, bq, 1), float("-inf"))
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
            if split:
                part, part_lse = merge(out[:, batch.rows], lse[:, batch.rows], part, part_lse)
            out[:, batch.rows] = part
            lse[:, batch.rows] = part_lse
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
    if bool(chunk.component.merge[chunk.head_numbers].any()):
        old, old_lse = out[where], lse[where]
        if rows is not None:
            old, old_lse = old.index_select(2, rows), old_lse.index_select(2, rows)
        part, part_lse = merge(old, old_lse[..., None], part, part_lse[..., None])
        part_lse = part_lse[..., 0]
    for target, own in ((out, part), (lse, part_lse)):
        if rows is None:
            target[where] = own
        else:
            whole = target[where].index_copy_(2, rows, own)
            if not isinstance(chunk.heads, slice):  # a list of heads gives a copy
                target[where] = whole


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
    floor = torch.where(dead, fused.DEAD_ROW, lse)
    dbias = None if options.bias is None else torch.zeros_like(options.bias, dtype=exact)
    wide = None  # the tensors as torch's fused kernel wants them, once a chunk goes there
    grads = [Gradient(q, True), Gradient(k, False), Gradient(v, False)]
    space = Workspace(delta)
    for component in layout.components:
        for chunk, batches in chunks(component, layout, options, q):
            if may_fuse and fused.serves(batches):
                if wide is None:
                    wide = [x.float() for x in (dout, out, q, k, v)]
                    wide = wide if dlse is None else fused.with_column(wide[0], dlse, *wide[1:])
                parts = fused.backward_chunk(space, chunk, batches, wide, floor)
            else:
                parts = _backward_chunk(space, chunk, batches, dout, q, k, v, floor, delta, dbias)
            for grad, part in zip(grads, parts, strict=True):
                grad.add(chunk, part, q.shape[1])
    if dbias is not None and options.bias is not None:
        dbias = dbias.to(options.bias.dtype)
    dq, dk, dv = (grad.total(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv, dbias


def _backward_chunk(space: Workspace, chunk: Chunk, batches, dout, q, k, v, lse, delta, dbias) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one chunk, in its order and in `space`."""
    c, o = chunk.component, chunk.options
    qo, ko, vo = chunk.inputs(q, k, v, space)
    qo = qo if o.scale == 1.0 else qo * o.scale
    do = chunk.ordered(dout, True, chunk.heads, space, "do")
    lo, de = chunk.ordered_rows(lse, fused.DEAD_ROW), chunk.ordered_rows(delta, 0.0)
    G, _blocks, bq, D = qo.shape
    dq, dk, dv = space.zeros("chunk_dq", qo), space.zeros("chunk_dk", ko), space.zeros("chunk_dv", vo)
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


class Gradient:
    """The sum over chunks of one gradient [B, H, T, D]. The first chunk of a head overwrites, so nothing is zeroed."""

    def __init__(self, x: Tensor, queries: bool):
        self.sum = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        self.queries = queries
        self.begun = torch.zeros(x.shape[:2], dtype=torch.bool)  # on the CPU: what is asked of it decides what runs

    def add(self, chunk: Chunk, values: Tensor, H: int) -> None:
        """Adds a chunk's part [G, blocks, block, D or more], in its order; H is the number of query heads."""
        values = values[..., : self.sum.shape[3]]
        repeat = H // self.sum.shape[1]
        heads = chunk.heads if repeat == 1 else sorted({head // repeat for head in chunk.head_numbers})
        begun = self.begun[chunk.batch]
        fresh = ~begun[:, heads]
        if repeat == 1 and isinstance(heads, slice) and bool(fresh.all()) and self._written(chunk, values, heads):
            begun[:, heads] = True
            return
        if bool(fresh.any()):
            self._clear(self.sum[chunk.batch], begun)
            begun[:] = True
        add_into(self.sum, chunk, values, self.queries, H)

    def _written(self, chunk: Chunk, values: Tensor, heads: slice) -> bool:
        """Writes the part and returns True where it holds every token row once; else returns False."""
        length, D = self.sum.shape[2:]
        part, rows = chunk.restored(values, self.queries, length)
        if rows is not None and (len(rows) != length or not bool((torch.bincount(rows, minlength=length) == 1).all())):
            return False
        own = self.sum[chunk.batch, heads]
        part = part.view(*own.shape[:2], -1, D)
        if rows is None:
            own.copy_(part)
        else:
            own.index_copy_(2, rows, part)
        return True

    def total(self, dtype: torch.dtype) -> Tensor:
        """The gradient."""
        self._clear(self.sum, self.begun)
        return self.sum.to(dtype)

    @staticmethod
    def _clear(sums: Tensor, begun: Tensor) -> None:
        """Zeros where no chunk has written."""
        if not bool(begun.all()):
            sums[(~begun).to(sums.device)] = 0.0


def add_into(target: Tensor, chunk: Chunk, values: Tensor, queries: bool, H: int) -> None:
    """Adds a chunk's gradient to the token rows and heads it belongs to."""
    length, D = target.shape[2], target.shape[3]
    part, rows = chunk.restored(values, queries, length)
    batch = target[chunk.batch]
    part = part.view(batch.shape[0], len(chunk.head_numbers), -1, D)
    repeat = H // target.shape[1]
    if repeat == 1 and isinstance(chunk.heads, slice):
        own = batch[:, chunk.heads]
        if rows is None:
            own += part
        else:
            own.index_add_(2, rows, part)
        return
    for place, head in enumerate(chunk.head_numbers):  # query heads of one key/value head add in the order of their number
        own = batch[:, head // repeat]
        if rows is None:
            own += part[:, place]
        else:
            own.index_add_(1, rows, part[:, place])
