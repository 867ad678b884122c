"""Calls torch's fused CPU attention kernel with our masks, and takes its log-sum-exp and gradients.

The kernel takes an additive mask and a causal flag at once, any strides, and gives the log-sum-exp, so it serves both whole
calls (a pattern's mask over all pairs) and the row batches of the blocked backend. Its backward pass takes the output and the
log-sum-exp that were merged from several parts, as ours does: p = exp(s - lse), ds = p * (dp - sum(dout * out)).

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width, N independent problems.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.blocked import NEGATIVE
from longspan_kernels.block_sparse.cache import dense_mask, is_dense, lookup, state_of
from longspan_kernels.launch.graphs import cleared_by

DEAD_ROW = 1e30  # stands for the log-sum-exp of a row without keys: exp(score - DEAD_ROW) is 0
LARGE = 1 << 12  # a score from which float32 leaves less than 12 bits behind the point
MOST_MASK_BYTES = 1 << 28  # of all kept masks together
_masks: OrderedDict[tuple, Tensor] = OrderedDict()
_lock = Lock()


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
    name = (key, state_of(key), q_len, k_len, heads, causal)
    with _lock:
        found = _masks.get(name)
        if found is not None:
            _masks.move_to_end(name)
            return found
    with torch.inference_mode(False), torch.no_grad():
        live = dense_mask(key, q_len, k_len, heads, causal, torch.device("cpu"))
        if heads > 1 and bool((live[1:] == live[:1]).all()):
            live = live[:1]
        found = torch.zeros(live.shape).masked_fill_(~live, NEGATIVE)[None]
    with _lock:
        for other in [other for other in _masks if other[0] == key and other[1] != name[1]]:
            del _masks[other]
        _masks[name] = found
        while len(_masks) > 1 and sum(mask.nbytes for mask in _masks.values()) > MOST_MASK_BYTES:
            _masks.popitem(last=False)
    return found


@cleared_by
def clear_masks() -> None:
    """Forgets every kept mask."""
    with _lock:
        _masks.clear()


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
        found = attend_backward(
            dout[of_rows],
            wide[0][of_rows],
            wide[1][of_columns],
            wide[2][of_columns],
            out[of_rows],
            floor[of_rows],
            flag,
            part,
            options.scale,
        )
        for grad, own, where in zip(grads, found, (of_rows, of_columns, of_columns), strict=True):
            grad[where] = own[..., :D]
    if Hkv != H:
        grads[1:] = [x.view(B, Hkv, H // Hkv, -1, D).sum(2) for x in grads[1:]]
    return grads[0].to(q.dtype), grads[1].to(k.dtype), grads[2].to(v.dtype)
