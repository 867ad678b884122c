"""The gated delta rule in plain torch, any device: matrix products over chunks of tokens, a state between them.

Within a chunk, S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T is linear attention of other values: S_t = a_t S_{t-1} +
k_t u_t^T, where u_t = b_t (v_t - a_t S_{t-1}^T k_t). The u of a chunk solve a unit lower triangular system (2406.06484, the WY
form): (I + L) U = b V - b into K S, L_tj = b_t exp(G_t - G_j) k_t . k_j below the diagonal. So U = A b V - W S, with
A = (I + L)^-1 and W = A b into K, and only the products with S wait for the chunk before.

Legend: B batch, H heads, T tokens, D width of q and k, Dv width of v, N chunks of C tokens, S the state before a chunk, G the
sum of log decays in a chunk; into, onto, within, kept as in `chunked.decays`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan_kernels.linear.chunked import CHUNK, decays, exact_operands, start_state, without_ends

Span = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
ELEMENTS_AT_ONCE = 1 << 19  # of what is held for each chunk: its scores and its state


@dataclass
class Chunks:
    """A call cut into chunks, [B, H, N, C, ...], and what its triangular systems give."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor  # (B, H, N, C)
    into: Tensor
    onto: Tensor
    within: Tensor
    kept: Tensor
    inverse: Tensor  # A (B, H, N, C, C)
    products: Tensor  # k k^T (B, H, N, C, C)
    from_values: Tensor  # A b V (B, H, N, C, Dv)
    from_state: Tensor  # W (B, H, N, C, D)

    @property
    def erased(self) -> Tensor:
        """b into K."""
        return (self.beta * self.into)[..., None] * self.k


def cut(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    before: Tensor | None,
) -> Chunks:
    """Solves the triangular systems of all chunks."""
    T = q.shape[2]
    C = min(CHUNK, T)
    pad = -T % C
    q, k, v, g = exact_operands(q, k, v, log_decay, lengths)
    beta = beta.to(q.dtype)
    if lengths is not None:
        beta = beta.masked_fill((torch.arange(T, device=q.device) >= lengths[:, None])[:, None], 0.0)
    if g is None:
        g = q.new_zeros(1, 1, T)
    into, onto, within, kept = decays(g, runs, before, C, q.dtype)
    q, k, v = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, C)) for x in (q, k, v))
    beta = F.pad(beta, (0, pad)).unflatten(2, (-1, C))
    products = k @ k.transpose(-1, -2)
    one = torch.eye(C, dtype=q.dtype, device=q.device)
    system = (beta[..., None] * within * products).tril(-1) + one
    inverse = torch.linalg.solve_triangular(system, one.expand_as(system), upper=False, unitriangular=True)
    from_values = inverse @ (beta[..., None] * v)
    from_state = inverse @ ((beta * into)[..., None] * k)
    return Chunks(q, k, v, beta, into, onto, within, kept, inverse, products, from_values, from_state)


def run_states(c: Chunks, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [B, H, N, C, Dv], the state before each chunk [B, H, N, D, Dv], and the last state."""
    N = c.q.shape[2]
    values = torch.empty_like(c.from_values)
    states = state.new_empty(*c.q.shape[:3], *state.shape[-2:])
    added_keys = (c.onto[..., None] * c.k).transpose(-1, -2)  # (B, H, N, D, C)
    kept = c.kept.expand(c.q.shape[:3])[..., None, None]
    for n in range(N):
        states[:, :, n] = state
        values[:, :, n] = c.from_values[:, :, n] - c.from_state[:, :, n] @ state
        state = kept[:, :, n] * state + added_keys[:, :, n] @ values[:, :, n]
    return values, states, state


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    before: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`forward` of one span."""
    c = cut(q, k, v, beta, log_decay, runs, lengths, before)
    values, states, last = run_states(c, start_state(initial_state, c.q, c.v))
    scores = c.q @ c.k.transpose(-1, -2) * c.within
    out = scores @ values + c.into[..., None] * (c.q @ states)
    return (out.flatten(2, 3)[:, :, : q.shape[2]] * scale).to(q.dtype), last


def _backward(
    dout: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    before: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`backward` of one span."""
    T, repeat = q.shape[2], q.shape[1] // k.shape[1]
    c = cut(q, k, v, beta, log_decay, runs, lengths, before)
    values, states, last = run_states(c, start_state(initial_state, c.q, c.v))
    do, _, _, _ = exact_operands(dout, k[..., :0], v[..., :0], None, lengths)
    do = F.pad(do * scale, (0, 0, 0, -T % c.q.shape[3])).unflatten(2, (-1, c.q.shape[3]))
    after = start_state(dstate, c.q, c.v)
    dvalues, back, first = _run_back(c, do, after)
    # As linear attention of q, k and U.
    dscores = do @ values.transpose(-1, -2) * c.within
    dq = dscores @ c.k + c.into[..., None] * (do @ states.transpose(-1, -2))
    dk = dscores.transpose(-1, -2) @ c.q + c.onto[..., None] * (values @ back.transpose(-1, -2))
    dg = (c.q * dq).sum(-1) - (c.k * dk).sum(-1)  # (B, H, N, C) of the sums G
    following = torch.cat((states[:, :, 1:], last[:, :, None]), 2)
    dg[..., -1] += (following * back).sum((-1, -2))
    # U = A b V - W S: through the right-hand sides, then through A, whose gradient is -A^T (.) A^T.
    to_values = c.inverse.transpose(-1, -2) @ dvalues
    to_erased = c.inverse.transpose(-1, -2) @ -(dvalues @ states.transpose(-1, -2))
    dsystem = -(to_values @ c.from_values.transpose(-1, -2) + to_erased @ c.from_state.transpose(-1, -2)).tril(-1)
    weighted = dsystem * c.within
    dbeta = (weighted * c.products).sum(-1) + (to_values * c.v).sum(-1) + c.into * (to_erased * c.k).sum(-1)
    moved = weighted * c.products * c.beta[..., None]
    dg += moved.sum(-1) - moved.sum(-2) + (to_erased * c.erased).sum(-1)
    dproducts = weighted * c.beta[..., None]
    dk += (dproducts + dproducts.transpose(-1, -2)) @ c.k + (c.beta * c.into)[..., None] * to_erased
    dv = c.beta[..., None] * to_values
    dg = dg.flip(-1).cumsum(-1).flip(-1)
    dq, dk, dv, dbeta, dg = (x.flatten(2, 3)[:, :, :T] for x in (dq, dk, dv, dbeta, dg))
    if repeat > 1:
        dk, dv = (x.unflatten(1, (-1, repeat)).sum(2) for x in (dk, dv))
    if lengths is not None:
        dbeta = dbeta.masked_fill((torch.arange(T, device=q.device) >= lengths[:, None])[:, None], 0.0)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dbeta, dg, first


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out [B, H, T, Dv] in q's dtype and the last state [B, H, D, Dv], in float32 or wider."""
    state, out = initial_state, []
    for _, span in spans(q, k, v, beta, log_decay, runs, lengths):
        part, state = _forward(*span, state, scale)
        out.append(part)
    assert state is not None
    return torch.cat(out, 2), state


def backward(
    dout: Tensor,
    dstate: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    runs: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv as q, k, v; d beta and d log_decay [B, H, T]; d initial_state. All of the forward pass is computed again."""
    state, states = initial_state, []
    cuts = list(spans(q, k, v, beta, log_decay, runs, lengths))
    for _, span in cuts[:-1]:
        states.append(state)
        c = cut(*span)
        _, _, state = run_states(c, start_state(state, c.q, c.v))
    states.append(state)
    back, found = dstate, []
    for n in reversed(range(len(cuts))):
        here, span = cuts[n]
        *parts, back = _backward(dout[:, :, here], back, *span, states[n], scale)
        found.append(parts)
    assert back is not None
    dq, dk, dv, dbeta, dg = (torch.cat(parts, 2) for parts in zip(*reversed(found), strict=True))
    return dq, dk, dv, dbeta, without_ends(dg, runs, lengths), back


def spans(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, runs: Tensor | None, lengths: Tensor | None
) -> Iterator[tuple[slice, Span]]:
    """Slices of the tokens, and the arguments of `cut` there: so few chunks at once that they stay near the cache."""
    (B, H, T, D), Dv = q.shape, v.shape[-1]
    step = CHUNK * max(1, ELEMENTS_AT_ONCE // (B * H * max(CHUNK * CHUNK, D * Dv)))
    for first in range(0, T, step):
        here = slice(first, min(T, first + step))
        g = None if log_decay is None else log_decay[:, :, here]
        own = None if runs is None else runs[:, here]
        before = None if runs is None else runs[:, max(0, first - 1), None]
        ends = None if lengths is None else lengths - first
        yield here, (q[:, :, here], k[:, :, here], v[:, :, here], beta[:, :, here], g, own, ends, before)


def _run_back(c: Chunks, do: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dU, the gradient of the state after each chunk, and that of the state before the first."""
    scores = c.q @ c.k.transpose(-1, -2) * c.within
    dvalues = scores.transpose(-1, -2) @ do
    back = state.new_empty(*c.q.shape[:3], *state.shape[-2:])
    added_keys = c.onto[..., None] * c.k
    read = (c.into[..., None] * c.q).transpose(-1, -2) @ do  # (B, H, N, D, Dv)
    kept = c.kept.expand(c.q.shape[:3])[..., None, None]
    for n in reversed(range(c.q.shape[2])):
        back[:, :, n] = state
        dvalues[:, :, n] += added_keys[:, :, n] @ state
        state = kept[:, :, n] * state + read[:, :, n] - c.from_state[:, :, n].transpose(-1, -2) @ dvalues[:, :, n]
    return dvalues, back, state
