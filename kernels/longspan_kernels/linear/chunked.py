"""Causal linear attention in plain torch, any device: matrix products over chunks of tokens, a state between them.

Every gradient is the same recurrence as the output on other operands. With A_ij = exp(G_i - G_j) q_i . k_j and
P_ij = exp(G_i - G_j) dout_i . v_j for j <= i in a chunk, G the sum of log decays in it, S the state before the chunk and R the
gradient of the state after it:

    out = A v + exp(G) q S           dq = P k + exp(G) dout S^T
    dk = P^T q + exp(G_last - G) v R^T   dv = A^T dout + exp(G_last - G) k R

S runs forwards over the chunks, R backwards. Where decays add up to little in every chunk, a CPU takes exp(G) into q and
exp(-G) into k: what is left has no decay but of the states from chunk to chunk.

Legend: B batch, H heads, T tokens, D width of q and k, Dv width of v; a block has N chunks of C tokens, M = B * H * N.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan_kernels.launch.kept_memory import results
from longspan_kernels.linear.blocks import Call, own_state

# one chunk of 16 heads stays in a CPU's cache; a GPU wants few launches
ELEMENTS_AT_ONCE = {"cpu": 1 << 16, "other": 1 << 22}


def carried(x: Tensor, states: Tensor, remains: Tensor | None) -> Tensor:
    out = torch.bmm(x, states)
    return out if remains is None else out.mul_(remains)


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
    call = Call.of(q, v, log_decay, runs, lengths, ELEMENTS_AT_ONCE, may_factor=True)
    out = results.empty((*q.shape[:3], v.shape[-1]), q)
    state = own_state(initial_state, q, v)
    for block in call.blocks():
        x, y, z = block.queries(q), block.keys(k), block.read(v)
        states = block.run(state, y, z)
        block.write(out, carried(x, states, block.into).baddbmm_(block.scores(x, y), z), scale)
    return out, state.unflatten(0, q.shape[:2])


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
    call = Call.of(q, v, log_decay, runs, lengths, ELEMENTS_AT_ONCE, may_factor=True)
    dq, dk, dv = (results.empty(t.shape, t) for t in (q, k, v))
    change = q.new_zeros(q.shape[:3], dtype=call.dtype)  # q . dq - k . dk
    state = own_state(initial_state, q, v)
    for block in call.blocks():
        y, z, do = block.keys(k), block.read(v), block.read(dout, scale)
        states = block.run(state, y, z)
        part = carried(do, states.mT, block.into).baddbmm_(block.scores(do, z), y)
        if block.falls is not None:
            part.mul_(block.falls)
        if wants_decay:
            block.add(change, block.read(q), part)
        block.write(dq, part)
    back = own_state(dstate, q, v)
    for block in call.blocks(backwards=True):
        x, y, z, do = block.queries(q), block.keys(k), block.read(v), block.read(dout, scale)
        states = block.run(back, x, do, backwards=True)
        part = carried(z, states.mT, block.onto).baddbmm_(block.scores(do, z).mT, x)
        if wants_decay:  # factored, y has the factor that `part` lacks
            block.add(change, y, part, -1.0)
        if block.rises is not None:
            part.mul_(block.rises)
        block.write(dk, part)
        block.write(dv, carried(y, states, block.onto).baddbmm_(block.scores(x, y).mT, do))
    dg = None
    if wants_decay:
        # Of what crosses a token: pairs on both its sides. Token l begins the pairs counted in k.dk, ends those in q.dq.
        crossing = (state * own_state(dstate, q, v)).sum((-1, -2)).view(*q.shape[:2], 1)
        dg = change.double().flip(-1).cumsum(-1).flip(-1) + crossing
        dg = without_ends(dg.to(call.dtype), runs, lengths)
    return dq, dk, dv, dg, back.unflatten(0, q.shape[:2])


def without_ends(dg: Tensor, runs: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Zeros where a decay decays nothing: beyond a length, and at the first token of a later run."""
    if runs is not None:
        starts = F.pad(runs[:, 1:] != runs[:, :-1], (1, 0))
        dg = dg.masked_fill(starts[:, None], 0.0)
    if lengths is not None:
        beyond = torch.arange(dg.shape[-1], device=dg.device) >= lengths[:, None]
        dg = dg.masked_fill(beyond[:, None], 0.0)
    return dg
