"""Calls torch's fused CPU attention kernel with our masks, and takes its log-sum-exp and gradients.

The kernel takes an additive mask and a causal flag at once, any strides, and gives the log-sum-exp, so it serves both whole
calls (`dense_forward`: a pattern's mask over all pairs) and chunks of the blocked backend whose keys are views of the ordered
keys (`forward_chunk`: a batch of rows is one call of many small problems). Its backward pass takes the output and the
log-sum-exp that were merged from several parts, as ours does: p = exp(s - lse), ds = p * (dp - sum(dout * out)).

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width, N independent problems; of
chunks as in blocked.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.blocked import NEGATIVE, Chunk, RowBatch, Workspace
from longspan_kernels.block_sparse.cache import KeptMasks, dense_mask, is_dense, lookup, state_of

DEAD_ROW = 1e30  # stands for the log-sum-exp of a row without keys: exp(score - DEAD_ROW) is 0
LARGE = 1 << 12  # a score from which float32 leaves less than 12 bits behind the point
KEYS_AT_ONCE = 1 << 19  # elements of the keys of one chunk, each counted for every row; the kernel holds no scores
MOST_MASK_BYTES = 1 << 28  # of all kept masks together
_masks = KeptMasks(MOST_MASK_BYTES)


def takes(q: Tensor, options: Options) -> bool:
    """Whether the kernel serves a call on these tensors: no float64, no dropout, no block bias, and a scale above 0.

    The kernel masks by -inf before it scales, and -inf times a scale of 0 or less is NaN or +inf.
    """
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and options.dropout_p == 0.0
        and options.bias is None
        and options.scale > 0.0
    )


def too_large(lse: Tensor) -> bool:
    """Whether some scores are so large that both passes must round them alike, or weights exceed 1; this kernel rounds them
    differently."""
    return bool((lse.masked_fill(torch.isinf(lse), 0.0).abs() > LARGE).any())


def in_rows(x: Tensor) -> Tensor:
    """x itself where the numbers of a token are contiguous, as the kernel assumes, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def attend_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """float32 q, k, v [N, H, T, D], additive mask [N or 1, H or 1, Tq, Tk] -> out [N, H, Tq, D] and lse [N, H, Tq].

    Masks close a pair by NEGATIVE. A row without keys gives 0 and -inf.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(*map(in_rows, (q, k, v)), 0.0, causal, attn_mask=mask, scale=scale)
    if mask is not None:
        dead = lse <= NEGATIVE / 2
        if bool(dead.any()):
            out, lse = out.masked_fill(dead[..., None], 0.0), lse.masked_fill(dead, float("-inf"))
    return out, lse


def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv; `lse` holds DEAD_ROW where a row has no key, and `out` and `lse` may be merged from several parts."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return kernel(*map(in_rows, (dout, q, k, v, out)), lse, 0.0, causal, attn_mask=mask, scale=scale)


def with_column(dout: Tensor, dlse: Tensor, *tensors: Tensor) -> list[Tensor]:
    """[dout, out, q, k, v] with one more column, whose product dout * out is -dlse, so that ds gains p * dlse.

    The kernel sums dout * out itself; zeros in q, k and v leave all else as it was.
    """
    out, *rest = tensors
    wider = [torch.cat([dout, -dlse[..., None]], -1), torch.cat([out, torch.ones_like(dlse)[..., None]], -1)]
    return wider + [torch.nn.functional.pad(x, (0, 1)) for x in rest]


def additive_mask(key: str, q_len: int, k_len: int, heads: int, causal: bool) -> Tensor | None:
    """[1, H or 1, Tq, Tk] float32, 0 where a pair is live and NEGATIVE elsewhere, from a cache of limited size; None where no
    mask or `causal` alone is enough."""
    if says_all(key, q_len, k_len, heads, causal):
        return None

    def make() -> Tensor:
        live = dense_mask(key, q_len, k_len, heads, causal, torch.device("cpu"))
        if heads > 1 and bool((live[1:] == live[:1]).all()):
            live = live[:1]
        return torch.zeros(live.shape).masked_fill_(~live, NEGATIVE)[None]

    return _masks.get((key, state_of(key), q_len, k_len, heads, causal), make)


def says_all(key: str, q_len: int, k_len: int, heads: int, causal: bool) -> bool:
    """Whether the pattern keeps exactly all pairs, or exactly those that the kernel's causal flag keeps."""
    if not is_dense(key, heads, causal) or (causal and q_len != k_len):
        return False
    groups = lookup(key).head_rules(q_len, k_len, heads, causal, torch.device("cpu"))
    return all(rule.band() == ((0, None) if causal else (None, None)) for _, rule in groups)


def _problems(q: Tensor, k: Tensor, options: Options, mask: Tensor | None) -> list[tuple[slice, int, int, Tensor | None]]:
    """(batch elements, their query and key counts, their mask): a call cut so that every one has one length.

    What lies beyond a length is not read at all. The causal flag stays right, as queries and keys keep their places.
    """
    B, Tq, Tk = q.shape[0], q.shape[2], k.shape[2]
    counts = []
    for lengths, most in ((options.q_lengths, Tq), (options.k_lengths, Tk)):
        counts.append([most] * B if lengths is None else lengths.clamp(0, most).tolist())
    together = options.q_segments is None
    cuts, begin = [], 0
    for b in range(1, B + 1):
        if b < B and together and (counts[0][b], counts[1][b]) == (counts[0][begin], counts[1][begin]):
            continue
        rows, columns = counts[0][begin], counts[1][begin]
        part = None if mask is None else mask[..., :rows, :columns]
        if options.q_segments is not None and options.k_segments is not None:
            apart = options.q_segments[begin, :rows, None] != options.k_segments[begin, None, :columns]
            blank = torch.zeros(1, 1, rows, columns) if part is None else part
            part = blank.masked_fill(apart, NEGATIVE)
        cuts.append((slice(begin, b), rows, columns, part))
        begin = b
    return cuts


def _prepared(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in float32, key/value heads repeated for the queries' heads."""
    repeat = q.shape[1] // k.shape[1]
    q, k, v = (in_rows(x.float()) for x in (q, k, v))
    return (q, k, v) if repeat == 1 else (q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1))


def dense_forward(q: Tensor, k: Tensor, v: Tensor, key: str, causal: bool, options: Options) -> tuple[Tensor, Tensor]:
    """q [B, H, Tq, D], k and v [B, Hkv, Tk, D] -> out in q's dtype, lse [B, H, Tq] float32."""
    mask = additive_mask(key, q.shape[2], k.shape[2], q.shape[1], causal)
    flag = causal and q.shape[2] == k.shape[2]
    q32, k32, v32 = _prepared(q, k, v)
    out = torch.zeros(q.shape)
    lse = torch.full(q.shape[:3], float("-inf"))
    for batch, rows, columns, part in _problems(q, k, options, mask):
        if rows and columns:
            tensors = q32[batch, :, :rows], k32[batch, :, :columns], v32[batch, :, :columns]
            out[batch, :, :rows], lse[batch, :, :rows] = attend_forward(*tensors, flag, part, options.scale)
    return out.to(q.dtype), lse


def dense_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    key: str,
    causal: bool,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    (B, H, Tq, D), Hkv = q.shape, k.shape[1]
    mask = additive_mask(key, Tq, k.shape[2], H, causal)
    flag = causal and Tq == k.shape[2]
    wide = list(_prepared(q, k, v))
    dout, out = dout.float(), out.float()
    floor = torch.where(torch.isinf(lse), DEAD_ROW, lse)
    if dlse is not None:
        dout, out, *wide = with_column(dout, torch.where(torch.isinf(lse), 0.0, dlse), out, *wide)
    grads = [torch.zeros((*x.shape[:3], D)) for x in wide]
    for batch, rows, columns, part in _problems(q, k, options, mask):
        if not rows or not columns:
            continue
        of_rows, of_columns = (batch, slice(None), slice(rows)), (batch, slice(None), slice(columns))
        do, queries, o, lo = (x[of_rows] for x in (dout, wide[0], out, floor))
        keys, values = (x[of_columns] for x in wide[1:])
        found = attend_backward(do, queries, keys, values, o, lo, flag, part, options.scale)
        for grad, own, where in zip(grads, found, (of_rows, of_columns, of_columns), strict=True):
            grad[where] = own[..., :D]
    if Hkv != H:
        grads[1:] = [x.view(B, Hkv, H // Hkv, -1, D).sum(2) for x in grads[1:]]
    return grads[0].to(q.dtype), grads[1].to(k.dtype), grads[2].to(v.dtype)


def fused_batches(batch: RowBatch, pairs: int, per_tile: int) -> Iterator[RowBatch]:
    """Chunks of a row batch whose keys (or their gradients) fit, `per_tile` elements each tile."""
    total = len(batch.index)
    step = total if batch.shared else max(1, KEYS_AT_ONCE // (pairs * per_tile * batch.count))
    for r in range(0, total, step):
        yield batch.cut(r, min(total, r + step))


def keys_of(x: Tensor, batch: RowBatch) -> Tensor:
    """A view [G, R or 1, n * bk, D] of x [G, blocks, bk, D], the key tiles of each row side by side."""
    G, _, block, D = x.shape
    R, n = batch.index.shape
    if batch.shared:
        return x[:, batch.first : batch.first + n].reshape(G, 1, n * block, D)
    strides = (x.stride(0), block * D, D, 1)
    return x.as_strided((G, R, n * block, D), strides, x.storage_offset() + batch.first * block * D)


def add_to_tiles(target: Tensor, batch: RowBatch, parts: Tensor) -> None:
    """target [G, blocks, bk, D] gains parts [G, R or 1, n * bk, D], in a fixed order: the transpose of `keys_of`."""
    G, _, block, D = target.shape
    R, n = batch.index.shape
    if batch.shared:
        target[:, batch.first : batch.first + n] += parts.reshape(G, n, block, D)
    elif n <= R:
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


def forward_chunk(
    space: Workspace, chunk: Chunk, batches: list[RowBatch], q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Output [G, blocks, bq, D] and log-sum-exp [G, blocks, bq, 1] of one chunk, in its order."""
    c, scale = chunk.component, chunk.options.scale
    qo, ko, vo = chunk.inputs(q, k, v, space)
    ko, vo = ko.contiguous(), vo.contiguous()
    G, blocks, bq, D = qo.shape
    out = _result(qo.shape, batches, blocks)
    lse = _result((G, blocks, bq, 1), batches, blocks, float("-inf"))
    for whole in batches:
        for batch in fused_batches(whole, G, c.block_k * D):
            keys, values = keys_of(ko, batch), keys_of(vo, batch)
            part, sums = attend_forward(rows_of(qo, batch), keys, values, False, additive(chunk, batch, G), scale)
            R = len(batch.index)
            out[:, batch.rows] = part.reshape(G, R, bq, D)
            lse[:, batch.rows] = sums.reshape(G, R, bq, 1)
    return out, lse


def backward_chunk(
    space: Workspace, chunk: Chunk, batches: list[RowBatch], tensors: list[Tensor], floor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one chunk, in its order, from [dout, out, q, k, v]; `floor` is the log-sum-exp, DEAD_ROW without keys."""
    dout, out, q, k, v = tensors
    c, scale = chunk.component, chunk.options.scale
    qo, ko, vo = chunk.inputs(q, k, v, space)
    ko, vo = ko.contiguous(), vo.contiguous()
    do, oo = (chunk.ordered(x, True, chunk.heads, space, name) for x, name in ((dout, "do"), (out, "oo")))
    lo = chunk.ordered_rows(floor, DEAD_ROW)
    G, blocks, bq, D = qo.shape
    dq, dk, dv = _result(qo.shape, batches, blocks), torch.zeros(ko.shape), torch.zeros(vo.shape)
    for whole in batches:
        for batch in fused_batches(whole, G, c.block_k * D):
            rows = [rows_of(x, batch) for x in (do, qo, oo, lo)]
            keys, values = keys_of(ko, batch), keys_of(vo, batch)
            mask = additive(chunk, batch, G)
            found = attend_backward(rows[0], rows[1], keys, values, rows[2], rows[3][..., 0], False, mask, scale)
            dq[:, batch.rows] = found[0].reshape(G, len(batch.index), bq, D)
            add_to_tiles(dk, batch, found[1])
            add_to_tiles(dv, batch, found[2])
    return dq, dk, dv
