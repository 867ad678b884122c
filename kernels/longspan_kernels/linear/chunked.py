"""Causal linear attention in plain torch, any device: matrix products over chunks of tokens, a state between them.

One function computes the output and all gradients, because each is the same recurrence on other operands: out = scan(q, k, v),
dq = scan(dout, v, k), and backwards in time dk = scan(v, dout, q), dv = scan(k, q, dout).

Legend: B batch, H heads, T tokens, D width of x and y, Dv width of z, N chunks of C tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
ELEMENTS_AT_ONCE = 1 << 22  # of what is held for each chunk: its scores and its state
FAINTEST = -100.0  # log decays below are taken as this: exp(-100) is 0 in float32, and differences of -inf are NaN


def scan(
    x: Tensor, y: Tensor, z: Tensor, log_decay: Tensor | None, runs: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """x, y [B, H, T, D], z [B, H, T, Dv], state [B, H, D, Dv] -> out [B, H, T, Dv] and the state after the last token.

    out_i = x_i (sum_{j <= i} exp(G_i - G_j) y_j z_j^T + exp(G_i) state), G the sum of log_decay [B, H, T] from the first
    token. Tokens of different `runs` [B, T] (a number that never falls) do not meet; the state belongs to the first run.
    """
    (B, H, T, D), Dv = x.shape, z.shape[-1]
    C = min(CHUNK, max(T, 1))
    at_once = C * max(1, ELEMENTS_AT_ONCE // (B * H * max(C * C, D * Dv)))
    before = None if runs is None else runs[:, :1]
    out = []
    for first in range(0, T, at_once):
        here = slice(first, min(T, first + at_once))
        g = None if log_decay is None else log_decay[:, :, here]
        r = None if runs is None else runs[:, here]
        part, state = _scan_chunks(x[:, :, here], y[:, :, here], z[:, :, here], g, r, before, state, C)
        before = None if r is None else r[:, -1:]
        out.append(part)
    return (torch.cat(out, 2) if len(out) != 1 else out[0]) if out else z.new_zeros(B, H, 0, Dv), state


def _scan_chunks(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    before: Tensor | None,
    state: Tensor,
    C: int,
) -> tuple[Tensor, Tensor]:
    T = x.shape[2]
    pad = -T % C
    x, y, z = (F.pad(t, (0, 0, 0, pad)).unflatten(2, (-1, C)) for t in (x, y, z))  # (B, H, N, C, ...)
    into, onto, within, kept = decays(log_decay, runs, before, C, x.dtype)
    scores = x @ y.transpose(-1, -2)  # (B, H, N, C, C)
    scores = scores.tril_() if within is None else scores.mul_(within)
    added = (y if onto is None else y * onto[..., None]).transpose(-1, -2) @ z  # (B, H, N, D, Dv)
    states = torch.empty_like(added)  # before each chunk
    for n in range(added.shape[2]):
        states[:, :, n] = state
        state = added[:, :, n] + (state if kept is None else state * kept[:, :, n, None, None])
    carried = x @ states
    out = scores @ z + (carried if into is None else carried.mul_(into[..., None]))
    return out.flatten(2, 3)[:, :, :T], state


def decays(log_decay: Tensor | None, runs: Tensor | None, before: Tensor | None, C: int, dtype: torch.dtype):
    """What remains of the past, all None where nothing is forgotten.

    Returns:
        into [B, H, N, C]: of the state before the chunk at each token. onto [B, H, N, C]: of each token at the chunk's end.
        within [B, H, N, C, C]: of each token at each later one, 0 above the diagonal. kept [B, H, N]: of the state over the
        chunk. H or B is 1 where heads or sequences are alike.
    """
    if log_decay is None and runs is None:
        return None, None, None, None
    like = log_decay if log_decay is not None else runs
    assert like is not None
    pad = -like.shape[-1] % C
    lower = torch.ones(C, C, dtype=torch.bool, device=like.device).tril()
    if log_decay is None:
        g = torch.zeros(1, 1, (like.shape[-1] + pad) // C, C, dtype=dtype, device=like.device)
    else:
        g = F.pad(log_decay.to(dtype).clamp(min=FAINTEST), (0, pad)).unflatten(-1, (-1, C)).cumsum(-1)
    last = g[..., -1:]
    within = (g[..., :, None] - g[..., None, :]).masked_fill(~lower, float("-inf")).exp()
    into, onto, kept = g.exp(), (last - g).exp(), last[..., 0].exp()
    if runs is not None and before is not None:
        r = F.pad(runs[:, None], (0, pad), mode="replicate").unflatten(-1, (-1, C))  # (B, 1, N, C)
        prior = torch.cat((before[:, None, :, None], r[:, :, :-1, -1:]), 2)  # (B, 1, N, 1) the run before each chunk
        within = within * (r[..., :, None] == r[..., None, :])
        into, onto = into * (r == prior), onto * (r == r[..., -1:])
        kept = kept * (prior == r[..., -1:])[..., 0]
    return into, onto, within, kept


def scan_back(
    x: Tensor, y: Tensor, z: Tensor, log_decay: Tensor | None, runs: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`scan` from the last token to the first: out_j = x_j (sum_{i >= j} exp(G_i - G_j) y_i z_i^T + exp(G_T - G_j) state).

    The state returned is that before the first token.
    """
    last = runs
    if runs is not None:
        last = runs[:, -1:] - runs.flip(1)
    late = None if log_decay is None else F.pad(log_decay.flip(2)[:, :, :-1], (1, 0))  # a token's decay lies before it
    out, state = scan(x.flip(2), y.flip(2), z.flip(2), late, last, state)
    if log_decay is not None and log_decay.shape[2]:
        state = state * log_decay[:, :, 0, None, None].to(state.dtype).clamp(min=FAINTEST).exp()
    return out.flip(2), state


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out [B, H, T, Dv] in q's dtype and the last state [B, H, D, Dv], in float32 or wider."""
    x, y, z, g = exact_operands(q, k, v, log_decay, lengths)
    state = start_state(initial_state, x, z)
    out, state = scan(x, y, z, g, runs, state)
    return out.mul_(scale).to(q.dtype), state


def backward(
    dout: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    wants_decay: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """dq, dk, dv as q, k, v; d log_decay [B, H, T] where wanted; d initial_state."""
    x, y, z, g = exact_operands(q, k, v, log_decay, lengths)
    do, _, _, _ = exact_operands(dout, k[..., :0], v[..., :0], None, lengths)
    do = do * scale
    first = start_state(initial_state, x, z)
    after = start_state(dstate, x, z)
    dq, last = scan(do, z, y, g, runs, first.transpose(-1, -2))
    dk, _ = scan_back(z, do, x, g, runs, after.transpose(-1, -2))
    dv, dfirst = scan_back(y, x, do, g, runs, after)
    dg = None
    if wants_decay:
        # Of what crosses a token: pairs on both its sides. Token l begins the pairs counted in k.dk, ends those in q.dq.
        change = (x * dq).sum(-1) - (y * dk).sum(-1)  # (B, H, T)
        crossing = (last.transpose(-1, -2) * after).sum((-1, -2))[..., None]
        dg = change.double().flip(-1).cumsum(-1).flip(-1) + crossing
        dg = without_ends(dg.to(x.dtype), runs, lengths)
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        dk, dv = (t.unflatten(1, (-1, repeat)).sum(2) for t in (dk, dv))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dg, dfirst


def exact_operands(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, lengths: Tensor | None):
    """In float32 or wider, keys and values once a query head, zeros beyond the lengths."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    H, T = q.shape[1:3]
    q, k, v = (t.to(dtype) for t in (q, k, v))
    k, v = (t.repeat_interleave(H // t.shape[1], 1) if t.shape[1] != H else t for t in (k, v))
    if lengths is not None:
        beyond = (torch.arange(T, device=q.device) >= lengths[:, None])[:, None]  # (B, 1, T)
        q, k, v = (t.masked_fill(beyond[..., None], 0.0) for t in (q, k, v))
        if log_decay is not None:
            log_decay = log_decay.masked_fill(beyond, 0.0)
    return q, k, v, None if log_decay is None else log_decay.to(dtype)


def start_state(state: Tensor | None, x: Tensor, z: Tensor) -> Tensor:
    if state is None:
        return x.new_zeros(*x.shape[:2], x.shape[-1], z.shape[-1])
    return state.to(x.dtype)


def without_ends(dg: Tensor, runs: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Zeros where a decay decays nothing: beyond a length, and at the first token of a later run."""
    if runs is not None:
        starts = F.pad(runs[:, 1:] != runs[:, :-1], (1, 0))
        dg = dg.masked_fill(starts[:, None], 0.0)
    if lengths is not None:
        beyond = torch.arange(dg.shape[-1], device=dg.device) >= lengths[:, None]
        dg = dg.masked_fill(beyond[:, None], 0.0)
    return dg
