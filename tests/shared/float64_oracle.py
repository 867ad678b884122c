"""Attention written out in float64, its gradients by hand, and how far rounding may take another computation from it.

Nothing here is shared with the backends but the pattern's own mask and the bits of dropout. Legend: B batch, H heads, T tokens,
D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from any_call import Drawn
from torch import Tensor

from longspan_kernels.block_sparse.reference import keep

DIGITS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
TINY = {
    torch.float16: 2.0**-24,
    torch.bfloat16: 1e-38,
    torch.float32: 1e-38,
    torch.float64: 1e-300,
}  # what a dtype still tells from 0


@dataclass
class Right:
    """Results by name, and beside each how far off rounding may leave it, number by number."""

    values: dict[str, Tensor]
    bounds: dict[str, Tensor]
    keyless: Tensor  # (B, H, Tq): queries without keys


def oracle(x: Drawn, seed: Tensor | None, slack: float) -> Right:
    """The right results of a call.

    Args:
        seed: what dropout was drawn with.
        slack: half digits that a log-sum-exp may lose before weights are recomputed from it.
    """
    (B, H, Tq, D), Tk = x.q.shape, x.k.shape[2]
    share = H // max(1, x.k.shape[1])
    q, k, v, dout, dlse = (t.double() for t in (x.q, x.k, x.v, x.dout, x.dlse))
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scale = D**-0.5 if x.call.get("scale") is None else x.call["scale"]
    live, q, k, v = _live(x, q, k, v)
    s = q @ k.transpose(2, 3) * scale
    bias, size = x.call.get("block_bias"), torch.zeros(())
    if bias is not None:
        block = x.pattern.block_size  # type: ignore[attr-defined]
        rows = (torch.arange(Tq) + Tk - Tq) // block - (Tk - Tq) // block
        added = bias.double()[:, rows][:, :, torch.arange(Tk) // block]
        live, size = live & (added > float("-inf")), added.abs().masked_fill(added.isinf(), 0.0)
        s = s + added.masked_fill(added.isinf(), 0.0)
    s = s.masked_fill(~live, float("-inf"))
    keyless = ~live.any(-1)
    top = s.amax(-1, keepdim=True).masked_fill(keyless[..., None], 0.0) if Tk else s.new_zeros(B, H, Tq, 1)
    e = (s - top).exp()
    total = e.sum(-1, keepdim=True)
    p = e / total.masked_fill(keyless[..., None], 1.0)
    lse = (top + total.log())[..., 0].masked_fill(keyless, float("-inf"))
    kept = torch.ones_like(p)
    if seed is not None:
        heads = torch.arange(B * H).view(B, H, 1, 1)
        i, j = torch.arange(Tq)[:, None] + Tk - Tq, torch.arange(Tk)[None]
        kept = keep(seed, heads, i, j, x.call["dropout_p"]).double() / (1.0 - x.call["dropout_p"])
    dout, dlse = dout.masked_fill(keyless[..., None], 0.0), dlse.masked_fill(keyless, 0.0)
    w = p * kept
    out = w @ v
    dp, delta = dout @ v.transpose(2, 3) * kept, (dout * out).sum(-1, keepdim=True)
    ds = p * (dp - delta + dlse[..., None])

    # How far rounding may take these: scores by the digits of their terms, weights by that much in the exponent.
    own, few = DIGITS[x.q.dtype], DIGITS[torch.promote_types(x.q.dtype, torch.float32)]
    terms = few * (Tk + D + 8)  # sums of so many terms
    score_terms = (q.abs() @ k.transpose(2, 3).abs() * abs(scale) + size).masked_fill(~live, 0.0)
    largest = score_terms.amax(-1, keepdim=True) if Tk else score_terms.new_zeros(B, H, Tq, 1)
    off = few * largest * (4 if x.exact else D + 4)
    w_off = torch.expm1((2 * off).clamp(max=40.0)) + terms
    again = off + slack * few * (top.abs() + total.masked_fill(keyless[..., None], 1.0).log().abs())
    p_off = torch.minimum(p * (torch.expm1((2 * again).clamp(max=40.0)) + terms), torch.ones(()).double()).masked_fill(
        ~live, 0.0
    )
    near = torch.minimum(p * w_off, torch.ones(()).double()).masked_fill(~live, 0.0)
    # 16-bit weights are rounded before they multiply; delta comes from the rounded output.
    dout_v = dout.abs() @ v.transpose(2, 3).abs() * kept
    dout_out = (dout.abs() * (w @ v.abs())).sum(-1, keepdim=True)
    out_off = (near + own * p) * kept @ v.abs()
    p_most = (p + p_off).clamp(max=1.0)
    ds_off = p_off * ((dp - delta).abs() + dlse[..., None].abs()) + p_most * (
        (terms + own) * (dout_v + dlse[..., None].abs())
        + (dout.abs() * (out_off + 2 * own * out.abs())).sum(-1, keepdim=True)
        + terms * dout_out
    )
    ds_off = (ds_off + own * (ds.abs() + ds_off)).masked_fill(~live, 0.0)
    wv_off = (p_off + (own + terms) * p_most) * kept

    def grouped(y: Tensor) -> Tensor:
        return y.view(B, H // share, share, Tk, D).sum(2) if share > 1 else y

    values = {
        "out": out,
        "lse": lse,
        "dq": ds @ k * scale,
        "dk": grouped(ds.transpose(2, 3) @ q * scale),
        "dv": grouped(w.transpose(2, 3) @ dout),
    }
    magnitude = abs(scale) * ds.abs()
    bounds = {
        "out": out_off,
        "lse": off[..., 0] + few * 4 * (lse.masked_fill(keyless, 0.0).abs() + 1) + terms,
        "dq": (ds_off * abs(scale) + terms * magnitude) @ k.abs(),
        "dk": grouped((ds_off * abs(scale) + terms * magnitude).transpose(2, 3) @ q.abs()),
        "dv": grouped(wv_off.transpose(2, 3) @ dout.abs()),
    }
    if bias is not None:
        values["dbias"], bounds["dbias"] = (_blocks(y, bias, rows, block) for y in (ds, ds_off + terms * ds.abs()))
    for name, y in values.items():
        digit = few if name in ("lse", "dbias") else own
        size_of = y.abs().masked_fill(y.isinf(), 0.0)
        bounds[name] = bounds[name] + 2 * digit * size_of + 64 * TINY[x.q.dtype] * (1 + float(x.score)) + 1e-30
    return Right(values, bounds, keyless)


def _live(x: Drawn, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Live pairs [B, H, Tq, Tk], and q, k, v with zeros where nothing exists."""
    (B, H, Tq, _), Tk = q.shape, k.shape[2]
    pairs = []
    for name in ("lengths", "segments"):
        given = x.call.get(name)
        pairs.append(given if isinstance(given, tuple) else (given, given))
    (q_lengths, k_lengths), (q_segments, k_segments) = pairs
    live = x.pattern.mask(Tq, Tk, heads=H, causal=x.call["causal"])[None].expand(B, -1, -1, -1)
    if x.has_own_lengths:  # of each sequence the pattern of its own length
        live = live & False
        for b, length in enumerate(torch.maximum(q_lengths, k_lengths).clamp(0, Tk).tolist()):
            live[b, :, :length, :length] = x.pattern.mask(length, heads=H)
    if q_lengths is not None:
        here = torch.arange(Tq) < q_lengths[:, None]
        live, q = live & here[:, None, :, None], q * here[:, None, :, None]
    if k_lengths is not None:
        here = torch.arange(Tk) < k_lengths[:, None]
        live, k, v = live & here[:, None, None], k * here[:, None, :, None], v * here[:, None, :, None]
    if q_segments is not None:
        live = live & (q_segments[:, None, :, None] == k_segments[:, None, None])
    return live, q, k, v


def _blocks(y: Tensor, bias: Tensor, rows: Tensor, block: int) -> Tensor:
    """Sums of y [B, H, Tq, Tk] over the blocks of a bias and over the batch."""
    columns = torch.arange(y.shape[3]) // block
    found = torch.zeros(y.shape[1], bias.shape[1], bias.shape[2], dtype=torch.float64)
    cell = (rows[:, None] * bias.shape[2] + columns).flatten()
    found.view(y.shape[1], -1).index_add_(1, cell, y.sum(0).flatten(1))
    return found.sum(0, keepdim=True) if bias.shape[0] == 1 else found
