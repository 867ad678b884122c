"""Attention of each query to tokens that it chose one by one, all heads the same (DeepSeek sparse attention, arXiv:2512.02556).

Legend: B batch, H heads, Hkv key/value heads, G = H / Hkv, T tokens, D head width, n picks a query, C queries of a chunk.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.errors import KernelError
from longspan_kernels.launch.ops import cast_as_products, lse_like, op, output_like, refuse_second_gradients, without_autocast
from longspan_kernels.selected.reference import selected_reference

NUMBERS_AT_ONCE = 1 << 20  # of gathered keys held in plain torch: 1 << 23 leave a core's cache and take twice the time
GATHERED = 16  # a key gathered in plain torch takes as long as so many scores


@overload
def attend_to_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    picks: Tensor,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def attend_to_tokens(
    q: Tensor, k: Tensor, v: Tensor, picks: Tensor, *, scale: float | None = ..., return_lse: Literal[True], backend: str = ...
) -> tuple[Tensor, Tensor]: ...


def attend_to_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    picks: Tensor,
    *,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of each query to the keys that it picked, and to no others.

    Picks get no gradient. Two runs give the same bits.

    Args:
        q: [B, H, T, D]; k, v: [B, Hkv, T, D]; any strides.
        picks: [B, T, n] whole numbers of tokens, distinct for a query, -1 for none.
        scale: of the scores; 1 / sqrt(D) unless given.
        return_lse: whether to return the log-sum-exp [B, H, T] of the scores too; it has no gradient.
        backend: "auto", "triton", "blocked" (plain torch) or "dense" (the definition).

    Returns:
        out [B, H, T, D]; 0, with a log-sum-exp of -inf, where a query picked nothing.

    Raises:
        KernelError: shapes that do not fit.
        BackendError: the backend cannot serve the call.
    """
    q, k, v = cast_as_products(q, k, v)
    B, H, T, D = q.shape
    fit = k.shape == v.shape and (k.shape[0], *k.shape[2:]) == (B, T, D) and k.shape[1] and H % k.shape[1] == 0
    if not fit or picks.dim() != 3 or picks.shape[:2] != (B, T):
        raise KernelError(
            f"picks {tuple(picks.shape)} do not fit q {tuple(q.shape)} and k {tuple(k.shape)}; give [B, T, picks a query] for "
            "q [B, H, T, D] and k, v [B, Hkv, T, D], where Hkv divides H"
        )
    backend = choose_backend(backend, q, k, active_transform(q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if backend == "dense":
        exact = torch.promote_types(q.dtype, torch.float32)
        of_all = picks[:, None].expand(-1, k.shape[1], -1, -1)
        with without_autocast(q):
            out, lse = selected_reference(q.to(exact), k.to(exact), v.to(exact), of_all, 1, scale=scale)
        return (out.to(q.dtype), lse) if return_lse else out.to(q.dtype)
    out, lse = tokens_forward(q, k, v, picks.detach().to(torch.int32), scale, backend)
    return (out, lse) if return_lse else out


@op("tokens_forward")
def tokens_forward(q: Tensor, k: Tensor, v: Tensor, picks: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "triton" and q.numel() and picks.numel():
        from longspan_kernels.selected.triton.tokens import triton_tokens_forward

        return triton_tokens_forward(q, k, v, picks, scale)
    exact = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(q.shape, dtype=exact, device=q.device)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=exact, device=q.device)
    with without_autocast(q):
        for b, rows, queries, keys, dead in _chunks(q, k, picks):
            scores = _scores(queries * scale, keys)  # (Hkv, C, G, n)
            scores.masked_fill_(dead, float("-inf"))
            here = scores.logsumexp(-1)  # (Hkv, C, G)
            weights = scores.sub_(here.masked_fill(here == float("-inf"), 0.0)[..., None]).exp_()
            out[b, :, rows] = _by_heads(_mixed(weights, _seen(v, b, picks[b, rows], keys, dead)))
            lse[b, :, rows] = _by_heads(here[..., None])[..., 0]
    return out.to(q.dtype), lse


@op("tokens_backward")
def tokens_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, picks: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "triton" and q.numel() and picks.numel():
        from longspan_kernels.selected.triton.tokens import triton_tokens_backward

        return triton_tokens_backward(dout, q, k, v, out, lse, picks, scale)
    exact = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = (torch.zeros(x.shape, dtype=exact, device=x.device) for x in (q, k, v))
    alive = (lse > float("-inf"))[..., None]
    dout = dout.to(exact).masked_fill(~alive, 0.0)
    delta = (dout * out.to(exact)).sum(-1, keepdim=True)
    lse = lse[..., None].masked_fill(~alive, float("inf"))
    with without_autocast(q):
        for b, rows, queries, keys, dead in _chunks(q, k, picks):
            values = _seen(v, b, picks[b, rows], keys, dead)
            rows_out, rows_lse, rows_delta = (_by_keys(x[b, :, rows], k.shape[1]) for x in (dout, lse, delta))
            weights = _scores(queries * scale, keys).sub_(rows_lse).clamp_(max=0.0).exp_().masked_fill_(dead, 0.0)
            ds = _scores(rows_out, values).sub_(rows_delta).mul_(weights).mul_(scale)  # (Hkv, C, G, n)
            dq[b, :, rows] = _by_heads(_mixed(ds, keys))
            index = picks[b, rows].clamp(min=0).long().flatten()
            for total, shares, given in ((dk[b], ds, queries), (dv[b], weights, rows_out)):
                if keys.dim() == 4:
                    _add_rows(total, index, shares.transpose(2, 3) @ given)
                else:
                    total[:, : keys.shape[1]] += shares.flatten(1, 2).mT @ given.flatten(1, 2)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _chunks(q: Tensor, k: Tensor, picks: Tensor):
    """(b, rows, queries [Hkv, C, G, D], keys, which scores are of no pick [C, 1, n]) of some queries at a time.

    Keys are those that each query picked, [Hkv, C, n, D], or all up to the last that any of them picked, [Hkv, n, D], where
    that takes less time: one product for all queries, and a mask.
    """
    (B, H, T, D), Hkv, n = q.shape, k.shape[1], picks.shape[2]
    exact = torch.promote_types(q.dtype, torch.float32)
    most = n * (GATHERED * Hkv + H) // H if q.device.type == "cpu" else 0  # keys, that all of them may be scored
    step = max(1, NUMBERS_AT_ONCE // max(1, Hkv * n * D))
    for b in range(B if n else 0):
        first = 0
        while first < T:
            # masked rows are many at once, or their product has too few rows
            rows = slice(first, min(T, first + max(step, min(256, NUMBERS_AT_ONCE // max(1, H * min(T, most))))))
            last = int(picks[b, rows].max()) + 1 if most else T + 1
            if last > most:
                rows = slice(first, min(T, first + step))
            here = picks[b, rows]
            queries = _by_keys(q[b, :, rows].to(exact), Hkv)
            if last <= most:
                picked = torch.zeros(here.shape[0], max(last, 1) + 1, dtype=torch.bool, device=q.device)
                picked.scatter_(1, here.long().masked_fill(here < 0, max(last, 1)), True)  # the last column is for none
                dead = ~picked[:, None, :-1]
                yield b, rows, queries, _up_to(k, b, dead), dead
            else:
                yield b, rows, queries, _gathered(k, b, here), (here < 0)[:, None]
            first = rows.stop


def _seen(x: Tensor, b: int, picks: Tensor, keys: Tensor, dead: Tensor) -> Tensor:
    """Values beside `keys` as `_chunks` gives them."""
    return _gathered(x, b, picks) if keys.dim() == 4 else _up_to(x, b, dead)


def _up_to(x: Tensor, b: int, dead: Tensor) -> Tensor:
    """[Hkv, n, D], the first n tokens of x [B, Hkv, T, D]; zeros for those that no query picked, which may be NaN."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return x[b, :, : dead.shape[2]].to(exact).masked_fill(dead.all(0)[0, :, None], 0.0)


def _scores(x: Tensor, keys: Tensor) -> Tensor:
    """x [Hkv, C, G, D] times keys of `_chunks` -> [Hkv, C, G, n]."""
    return x @ keys.transpose(2, 3) if keys.dim() == 4 else (x.flatten(1, 2) @ keys.mT).unflatten(1, x.shape[1:3])


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    """Weights [Hkv, C, G, n] of values -> [Hkv, C, G, D]."""
    return weights @ values if values.dim() == 4 else (weights.flatten(1, 2) @ values).unflatten(1, weights.shape[1:3])


def _gathered(x: Tensor, b: int, picks: Tensor) -> Tensor:
    """[Hkv, C, n, D] of x [B, Hkv, T, D]; zeros for no pick, since what no query sees may be NaN."""
    exact = torch.promote_types(x.dtype, torch.float32)
    found = x[b][:, picks.clamp(min=0).long()].to(exact)
    return found.masked_fill_((picks < 0)[..., None], 0.0) if bool((picks < 0).any()) else found


def _by_keys(x: Tensor, kv_heads: int) -> Tensor:
    """[H, C, ...] -> [Hkv, C, G, ...]."""
    return x.unflatten(0, (kv_heads, -1)).transpose(1, 2)


def _by_heads(x: Tensor) -> Tensor:
    """[Hkv, C, G, D] -> [H, C, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def _add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """Adds rows [Hkv, C, n, D] to total [Hkv, T, D] at index [C * n], in one order."""
    for head in range(total.shape[0]):
        if total.is_cuda:  # atomic additions come in any order
            total[head].index_put_((index,), rows[head].flatten(0, 1), accumulate=True)
        else:
            total[head].scatter_add_(0, index[:, None].expand(-1, total.shape[2]), rows[head].flatten(0, 1))


@tokens_forward.register_fake
def _(q, k, v, picks, scale, backend):
    return output_like(q), lse_like(q)


@tokens_backward.register_fake
def _(dout, q, k, v, out, lse, picks, scale, backend):
    return output_like(q), output_like(k), output_like(v)


def _save(ctx, inputs, output):
    q, k, v, picks, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output, picks)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, _):
    refuse_second_gradients("attention to tokens has", "dense")
    if dout is None:
        return (None,) * 6
    q, k, v, out, lse, picks = ctx.saved_tensors
    grads = tokens_backward(dout, q, k, v, out, lse, picks, ctx.scale, ctx.backend)
    return *grads, None, None, None


tokens_forward.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.longspan.tokens_forward)
def forward_flops(q_shape, k_shape, v_shape, picks_shape, *rest, out_shape=None, **kwargs) -> int:
    return 4 * q_shape[3] * q_shape[1] * picks_shape[0] * picks_shape[1] * picks_shape[2]


@register_flop_formula(torch.ops.longspan.tokens_backward)
def backward_flops(
    dout_shape, q_shape, k_shape, v_shape, o_shape, lse_shape, picks_shape, *rest, out_shape=None, **kwargs
) -> int:
    return 10 * q_shape[3] * q_shape[1] * picks_shape[0] * picks_shape[1] * picks_shape[2]
