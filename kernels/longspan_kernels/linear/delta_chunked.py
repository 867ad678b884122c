"""The gated delta rule in plain torch, any device: matrix products over chunks of tokens, a state between them.

Within a chunk, S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T is linear attention of other values: S_t = a_t S_{t-1} +
k_t u_t^T, where u_t = b_t (v_t - a_t S_{t-1}^T k_t). The u of a chunk solve a unit lower triangular system (2406.06484, the WY
form): (I + L) U = b V - b into K S, L_tj = b_t exp(G_t - G_j) k_t . k_j below the diagonal. So U = A b V - W S, with
A = (I + L)^-1 and W = A b into K, and only the products with S wait for the chunk before.

Legend: B batch, H heads, T tokens, D width of q and k, Dv width of v; a block has N chunks of C tokens, M = B * H * N; S the
state before a chunk, G the sum of log decays in a chunk; into, onto, within, kept as `Block` has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.launch.kept_memory import results
from longspan_kernels.linear.blocks import Block, Call, own_state
from longspan_kernels.linear.chunked import carried, without_ends

# two chunks of 16 heads stay in a CPU's cache; a GPU wants few launches
ELEMENTS_AT_ONCE = {"cpu": 1 << 17, "other": 1 << 23}


class Solved:
    """A block's operands, and what its triangular systems give.

    Attributes:
        k, v: [M, C, D] and [M, C, Dv]. beta, into, onto: [M, C, 1]. within: [M, C, C]. kept: [B * H, N, 1, 1].
        inverse: A [M, C, C]. products: k k^T [M, C, C]. from_values: A b V [M, C, Dv]. from_state: W [M, C, D].
        erased: b into K [M, C, D].
    """

    def __init__(self, block: Block, k: Tensor, v: Tensor, beta: Tensor) -> None:
        assert block.into is not None and block.onto is not None and block.within is not None and block.kept is not None
        self.into, self.onto, self.within, self.kept = block.into, block.onto, block.within, block.kept
        self.k, self.v, self.beta = block.read(k), block.read(v), block.read(beta[..., None])
        self.products = torch.bmm(self.k, self.k.mT)
        system = (self.products * self.within).mul_(self.beta).tril_(-1)
        one = torch.eye(block.C, dtype=system.dtype, device=system.device)
        self.inverse = torch.linalg.solve_triangular(system, one.expand_as(system), upper=False, unitriangular=True)
        self.from_values = torch.bmm(self.inverse, self.beta * self.v)
        self.erased = (self.beta * self.into).mul(self.k)
        self.from_state = torch.bmm(self.inverse, self.erased)

    def by_chunk(self, x: Tensor) -> Tensor:
        """[B * H, N, ...] of [M, ...]."""
        return x.unflatten(0, self.kept.shape[:2])

    def run(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """U [M, C, Dv] and the state before each chunk [M, D, Dv]; `state` [B * H, D, Dv] becomes that after the last."""
        values, states = torch.empty_like(self.from_values), state.new_empty(len(self.k), *state.shape[1:])
        added_keys = (self.onto * self.k).mT  # (M, D, C)
        for n in range(self.kept.shape[1]):
            self.by_chunk(states)[:, n] = state
            u = torch.baddbmm(self.by_chunk(self.from_values)[:, n], self.by_chunk(self.from_state)[:, n], state, alpha=-1)
            self.by_chunk(values)[:, n] = u
            state.mul_(self.kept[:, n]).baddbmm_(self.by_chunk(added_keys)[:, n], u)
        return values, states

    def run_back(self, back: Tensor, scores: Tensor, q: Tensor, do: Tensor) -> tuple[Tensor, Tensor]:
        """dU [M, C, Dv] and the gradient of the state after each chunk [M, D, Dv]; `back` becomes that before the first."""
        dvalues, after = torch.bmm(scores.mT, do), back.new_empty(len(q), *back.shape[1:])
        added_keys = self.onto * self.k
        read = torch.bmm((self.into * q).mT, do)  # (M, D, Dv)
        for n in reversed(range(self.kept.shape[1])):
            self.by_chunk(after)[:, n] = back
            du = torch.baddbmm(self.by_chunk(dvalues)[:, n], self.by_chunk(added_keys)[:, n], back)
            self.by_chunk(dvalues)[:, n] = du
            back.mul_(self.kept[:, n]).add_(self.by_chunk(read)[:, n])
            back.baddbmm_(self.by_chunk(self.from_state)[:, n].mT, du, alpha=-1)
        return dvalues, after


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
    call = _call(q, v, log_decay, runs, lengths)
    out = results.empty((*q.shape[:3], v.shape[-1]), q)
    state = own_state(initial_state, q, v)
    for block in call.blocks():
        c = Solved(block, k, v, beta)
        values, states = c.run(state)
        x = block.read(q)
        block.write(out, carried(x, states, c.into).baddbmm_(block.scores(x, c.k), values), scale)
    return out, state.unflatten(0, q.shape[:2])


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
    call = _call(q, v, log_decay, runs, lengths)
    dq, dk, dv = (results.empty(x.shape, x) for x in (q, k, v))
    dbeta, dg = (torch.empty(beta.shape, dtype=call.dtype, device=q.device) for _ in range(2))
    state = own_state(initial_state, q, v)
    starts = results.empty((call.count, *state.shape), state)  # the state before each block
    for n, block in enumerate(call.blocks()):
        starts[n] = state
        if n + 1 < call.count:
            Solved(block, k, v, beta).run(state)
    back = own_state(dstate, q, v)
    for start, block in zip(reversed(starts.unbind()), call.blocks(backwards=True), strict=True):
        c = Solved(block, k, v, beta)
        parts = _block_backward(block, c, block.read(q), block.read(dout, scale), start, back)
        for to, part in zip((dq, dk, dv, dbeta[..., None], dg[..., None]), parts, strict=True):
            block.write(to, part)
    if lengths is not None:
        dbeta.masked_fill_((torch.arange(q.shape[2], device=q.device) >= lengths[:, None])[:, None], 0.0)
    return dq, dk, dv, dbeta, without_ends(dg, runs, lengths), back.unflatten(0, q.shape[:2])


def _block_backward(
    block: Block, c: Solved, q: Tensor, do: Tensor, state: Tensor, back: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, d beta and d log_decay of a block, [M, C, width]; `state` is that before it and becomes that after it."""
    values, states = c.run(state)
    following = torch.cat((c.by_chunk(states)[:, 1:], state[:, None]), 1).flatten(0, 1)  # (M, D, Dv) after each chunk
    dvalues, after = c.run_back(back, block.scores(q, c.k), q, do)
    # As linear attention of q, k and U.
    dscores = block.scores(do, values)
    dq = carried(do, states.mT, c.into).baddbmm_(dscores, c.k)
    dk = carried(values, after.mT, c.onto).baddbmm_(dscores.mT, q)
    dg = (q * dq).sum(-1) - (c.k * dk).sum(-1)  # (M, C) of the sums G
    dg[:, -1] += (following * after).sum((-1, -2))
    # U = A b V - W S: through the right-hand sides, then through A, whose gradient is -A^T (.) A^T.
    to_values = torch.bmm(c.inverse.mT, dvalues)
    to_erased = torch.bmm(c.inverse.mT, torch.bmm(dvalues, states.mT)).neg_()
    weighted = torch.bmm(to_values, c.from_values.mT).baddbmm_(to_erased, c.from_state.mT).tril_(-1).neg_().mul_(c.within)
    dbeta = (to_values * c.v).sum(-1) + c.into[..., 0] * (to_erased * c.k).sum(-1)
    dg += (to_erased * c.erased).sum(-1)
    dproducts = weighted * c.beta
    moved = weighted.mul_(c.products)
    dbeta += moved.sum(-1)
    moved.mul_(c.beta)
    dg += moved.sum(-1) - moved.sum(-2)
    dk.baddbmm_(dproducts + dproducts.mT, c.k).add_((c.beta * c.into).mul(to_erased))
    dg = dg.flip(-1).cumsum(-1).flip(-1)
    return dq, dk, to_values.mul_(c.beta), dbeta[..., None], dg[..., None]


def _call(q: Tensor, v: Tensor, log_decay: Tensor | None, runs: Tensor | None, lengths: Tensor | None) -> Call:
    if log_decay is None:
        log_decay = q.new_zeros(1, 1, 1, dtype=torch.promote_types(q.dtype, torch.float32)).expand(q.shape[:3])
    return Call.of(q, v, log_decay, runs, lengths, ELEMENTS_AT_ONCE)
