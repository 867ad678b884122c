"""Triton kernels of the gated delta rule's backward pass; `delta_kernels.py` has the legend. Import this file lazily.

No result of a product is transposed and taken into another: on Hopper, Triton 3.4 to 3.7 makes wrong code of that. What is
needed both ways is computed both ways.

Loops of `finish_gradients` stay loops: unrolled, its float32 products took two minutes to compile for wide heads.
"""

# ruff: noqa: SIM108 (compile-time branches stay statements)
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.linear.triton.delta_kernels import (
    VARYING,
    chunk_decays,
    chunk_of,
    key_products,
    rows_of,
    stop_of,
    tokens_of,
)


@triton.jit(do_not_specialize=VARYING)
def local_gradients(
    Q,
    K,
    DOUT,
    DVALUES,
    G,
    RUNS,
    LENGTHS,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    o_b: tl.int64,
    o_h: tl.int64,
    o_t: tl.int64,
    scale,
    length: tl.int32,
    chunks: tl.int32,
    S: tl.constexpr,
):
    """DVALUES = scale * (q k^T within)^T dout: what a chunk's values give to its own outputs."""
    D: tl.constexpr = S.D
    DV: tl.constexpr = S.DV
    C: tl.constexpr = S.C
    BX: tl.constexpr = S.BX
    BZ: tl.constexpr = S.BZ
    TYPE: tl.constexpr = DVALUES.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if S.EXACT else "tf32"
    TILES: tl.constexpr = DV // BZ
    program = tl.program_id(0) // TILES
    zs = tl.program_id(0) % TILES * BZ + tl.arange(0, BZ)
    bh, _, first, rows, ok = chunk_of(program, chunks, LENGTHS, length, S)
    q_rows = tokens_of(Q, q_b, q_h, q_t, bh, 1, S, first)
    k_rows = tokens_of(K, k_b, k_h, k_t, bh, S.K_REPEAT, S, first)
    o_rows = tokens_of(DOUT, o_b, o_h, o_t, bh, 1, S, first)
    _, _, within, _ = chunk_decays(G, RUNS, bh, first, rows, ok, length, S)
    scores = tl.zeros((C, C), tl.float32)
    for x in tl.static_range(D // BX):
        xs = x * BX + tl.arange(0, BX)
        q, k = rows_of(q_rows, q_t, rows, xs, ok, TYPE), rows_of(k_rows, k_t, rows, xs, ok, TYPE)
        scores = tl.dot(k, tl.trans(q), scores, input_precision=PRECISION)  # transposed
    do = rows_of(o_rows, o_t, rows, zs, ok, TYPE)
    made = tl.dot((scores * tl.trans(within)).to(TYPE), do, input_precision=PRECISION) * scale
    tl.store(DVALUES + program.to(tl.int64) * C * DV + rows[:, None] * DV + zs[None, :], made.to(TYPE))


@triton.jit(do_not_specialize=VARYING)
def run_states_back(
    Q, K, DOUT, FROM_STATE, DVALUES, BACK, END, FIRST, G, RUNS, LENGTHS,
    q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, k_b: tl.int64, k_h: tl.int64, k_t: tl.int64,
    o_b: tl.int64, o_h: tl.int64, o_t: tl.int64, scale, length: tl.int32, chunks: tl.int32, S: tl.constexpr,
):  # fmt: skip
    """DVALUES += what comes back through the states; BACK: gradients of the states after the chunks, FIRST: of the first."""
    D: tl.constexpr = S.D
    DV: tl.constexpr = S.DV
    C: tl.constexpr = S.C
    BZ: tl.constexpr = S.BZ
    TYPE: tl.constexpr = BACK.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if S.EXACT else "tf32"
    TILES: tl.constexpr = DV // BZ
    bh = tl.program_id(0) // TILES
    rows, xs = tl.arange(0, C), tl.arange(0, D)
    zs = tl.program_id(0) % TILES * BZ + tl.arange(0, BZ)
    stop = stop_of(LENGTHS, bh, length, S)
    q_head = tokens_of(Q, q_b, q_h, q_t, bh, 1, S, 0)
    k_head = tokens_of(K, k_b, k_h, k_t, bh, S.K_REPEAT, S, 0)
    o_head = tokens_of(DOUT, o_b, o_h, o_t, bh, 1, S, 0)
    place = bh.to(tl.int64) * chunks * C
    entries = xs[:, None] * DV + zs[None, :]
    BACK += bh.to(tl.int64) * chunks * D * DV
    if END is not None:
        state = tl.load(END + bh.to(tl.int64) * D * DV + entries)
    else:
        state = tl.zeros((D, BZ), tl.float32)
    for step in tl.range(0, chunks):
        n = chunks - 1 - tl.cast(step, tl.int32)
        first = n * C
        ok = first + rows < stop
        into, onto, _, kept = chunk_decays(G, RUNS, bh, first, rows, ok, length, S)
        from_here = first.to(tl.int64)
        q = rows_of(q_head + from_here * q_t, q_t, rows, xs, ok, TYPE)
        k = rows_of(k_head + from_here * k_t, k_t, rows, xs, ok, TYPE)
        do = rows_of(o_head + from_here * o_t, o_t, rows, zs, ok, tl.float32)
        own = place + first
        w = tl.load(FROM_STATE + own * D + rows[:, None] * D + xs[None, :])
        values_at = DVALUES + own * DV + rows[:, None] * DV + zs[None, :]
        dvalues = tl.load(values_at).to(tl.float32)
        held = state.to(TYPE)
        tl.store(BACK + n.to(tl.int64) * D * DV + entries, held)
        dvalues += tl.dot(k, held, input_precision=PRECISION) * onto[:, None]
        stored = dvalues.to(TYPE)
        tl.store(values_at, stored)
        read = (do * (into * scale)[:, None]).to(TYPE)
        state = tl.dot(tl.trans(q), read, state * kept, input_precision=PRECISION)
        state -= tl.dot(tl.trans(w), stored, input_precision=PRECISION)
    tl.store(FIRST + bh.to(tl.int64) * D * DV + entries, state)


@triton.jit
def through_states(X, STATES, x_t, rows, xs, ok, scale, S: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """scale * x S^T [C, BX], x rows [C, DV] of tokens, S some rows of a state."""
    DV: tl.constexpr = S.DV
    C: tl.constexpr = S.C
    BX: tl.constexpr = S.BX
    BZ: tl.constexpr = S.BZ
    found = tl.zeros((C, BX), tl.float32)
    for z in tl.range(DV // BZ):
        zs = z * BZ + tl.arange(0, BZ)
        state = tl.load(STATES + xs[:, None] * DV + zs[None, :])
        x = rows_of(X, x_t, rows, zs, ok, TYPE)
        found = tl.dot(x, tl.trans(state), found, input_precision=PRECISION)
    return found * scale


@triton.jit(do_not_specialize=VARYING)
def finish_gradients(
    Q, K, V, DOUT, BETA, INVERSE, FROM_VALUES, FROM_STATE, VALUES, DVALUES, STATES, BACK,
    GRAD_Q, GRAD_K, GRAD_V, GRAD_BETA, GRAD_G,
    G, RUNS, LENGTHS,
    q_b: tl.int64, q_h: tl.int64, q_t: tl.int64, k_b: tl.int64, k_h: tl.int64, k_t: tl.int64,
    v_b: tl.int64, v_h: tl.int64, v_t: tl.int64, o_b: tl.int64, o_h: tl.int64, o_t: tl.int64, scale,
    length: tl.int32, chunks: tl.int32, S: tl.constexpr,
):  # fmt: skip
    """Gradients [B * H, T, ...] of a chunk's tokens; that of log decays is summed from a token to the chunk's end."""
    D: tl.constexpr = S.D
    DV: tl.constexpr = S.DV
    C: tl.constexpr = S.C
    BX: tl.constexpr = S.BX
    BZ: tl.constexpr = S.BZ
    TYPE: tl.constexpr = STATES.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if S.EXACT else "tf32"
    program = tl.program_id(0)
    bh, n, first, rows, ok = chunk_of(program, chunks, LENGTHS, length, S)
    exists = first + rows < length
    every = rows >= 0  # of what chunks hand on
    q_rows = tokens_of(Q, q_b, q_h, q_t, bh, 1, S, first)
    k_rows = tokens_of(K, k_b, k_h, k_t, bh, S.K_REPEAT, S, first)
    v_rows = tokens_of(V, v_b, v_h, v_t, bh, S.K_REPEAT, S, first)
    o_rows = tokens_of(DOUT, o_b, o_h, o_t, bh, 1, S, first)
    token = bh.to(tl.int64) * length + first
    beta = tl.load(BETA + token + rows, mask=ok, other=0.0)
    into, onto, within, _ = chunk_decays(G, RUNS, bh, first, rows, ok, length, S)
    place = program.to(tl.int64) * C
    STATES += (bh.to(tl.int64) * (chunks + 1) + n) * D * DV
    BACK += program.to(tl.int64) * D * DV
    VALUES += place * DV
    DVALUES += place * DV
    turned = tl.load(INVERSE + place * C + rows[None, :] * C + rows[:, None])  # the inverse, transposed
    inverse = tl.load(INVERSE + place * C + rows[:, None] * C + rows[None, :])
    # Products of tokens with tokens, each also transposed, and what comes through the right-hand side of the values.
    dscores = tl.zeros((C, C), tl.float32)
    dscores_t = tl.zeros((C, C), tl.float32)
    dsystem = tl.zeros((C, C), tl.float32)
    dsystem_t = tl.zeros((C, C), tl.float32)
    dbeta = tl.zeros((C,), tl.float32)
    dg = tl.zeros((C,), tl.float32)
    for z in tl.range(DV // BZ):
        zs = z * BZ + tl.arange(0, BZ)
        entries = rows[:, None] * DV + zs[None, :]
        do = rows_of(o_rows, o_t, rows, zs, ok, TYPE)
        values, dvalues = tl.load(VALUES + entries), tl.load(DVALUES + entries)
        dscores = tl.dot(do, tl.trans(values), dscores, input_precision=PRECISION)
        dscores_t = tl.dot(values, tl.trans(do), dscores_t, input_precision=PRECISION)
        to_values = tl.dot(turned, dvalues, input_precision=PRECISION)
        to_values_t = tl.dot(tl.trans(dvalues), inverse, input_precision=PRECISION)
        v = rows_of(v_rows, v_t, rows, zs, ok, tl.float32)
        dbeta += tl.sum(to_values * v, 1)
        made = tl.load(FROM_VALUES + place * DV + entries)
        dsystem -= tl.dot(to_values.to(TYPE), tl.trans(made), input_precision=PRECISION)
        dsystem_t -= tl.dot(made, to_values_t.to(TYPE), input_precision=PRECISION)
        at = GRAD_V + token * DV + entries
        tl.store(at, (to_values * beta[:, None]).to(GRAD_V.dtype.element_ty), mask=exists[:, None])
    # What comes through the right-hand side of the state.
    for x in tl.range(D // BX):
        xs = x * BX + tl.arange(0, BX)
        erased = -through_states(DVALUES, STATES, DV, rows, xs, every, 1.0, S, TYPE, PRECISION)
        erased = tl.dot(turned, erased.to(TYPE), input_precision=PRECISION)
        made = tl.load(FROM_STATE + place * D + rows[:, None] * D + xs[None, :])
        dsystem -= tl.dot(erased.to(TYPE), tl.trans(made), input_precision=PRECISION)
        erased_t = tl.zeros((BX, C), tl.float32)
        for z in tl.range(DV // BZ):
            zs = z * BZ + tl.arange(0, BZ)
            state = tl.load(STATES + xs[:, None] * DV + zs[None, :])
            dvalues = tl.load(DVALUES + rows[:, None] * DV + zs[None, :])
            erased_t -= tl.dot(state, tl.trans(dvalues), input_precision=PRECISION)
        erased_t = tl.dot(erased_t.to(TYPE), inverse, input_precision=PRECISION)
        dsystem_t -= tl.dot(made, erased_t.to(TYPE), input_precision=PRECISION)
        k = rows_of(k_rows, k_t, rows, xs, ok, tl.float32)
        passed = into * tl.sum(erased * k, 1)
        dbeta += passed
        dg += passed * beta
    # Through the system itself.
    products = key_products(k_rows, k_t, rows, ok, S, TYPE, PRECISION)
    weighted = tl.where(rows[:, None] > rows[None, :], dsystem * within, 0.0)
    dbeta += tl.sum(weighted * products, 1)
    weighted = weighted * beta[:, None]
    moved = weighted * products
    within_t = tl.trans(within)
    weighted_t = tl.where(rows[:, None] < rows[None, :], dsystem_t * within_t, 0.0) * beta[None, :]
    dg += tl.sum(moved, 1) - tl.sum(weighted_t * products, 1)  # the products are symmetric
    both = (weighted + weighted_t).to(TYPE)
    dscores, dscores_t = (dscores * within * scale).to(TYPE), (dscores_t * within_t * scale).to(TYPE)
    crossing = tl.zeros((BX,), tl.float32)
    for x in tl.range(D // BX):
        xs = x * BX + tl.arange(0, BX)
        entries = rows[:, None] * D + xs[None, :]
        q, k = rows_of(q_rows, q_t, rows, xs, ok, TYPE), rows_of(k_rows, k_t, rows, xs, ok, TYPE)
        dq = through_states(o_rows, STATES, o_t, rows, xs, ok, scale, S, TYPE, PRECISION) * into[:, None]
        dq = tl.dot(dscores, k, dq, input_precision=PRECISION)
        dk = through_states(VALUES, BACK, DV, rows, xs, every, 1.0, S, TYPE, PRECISION) * onto[:, None]
        dk = tl.dot(dscores_t, q, dk, input_precision=PRECISION)
        dg += tl.sum(q.to(tl.float32) * dq, 1) - tl.sum(k.to(tl.float32) * dk, 1)
        for z in tl.range(DV // BZ):
            zs = z * BZ + tl.arange(0, BZ)
            at = xs[:, None] * DV + zs[None, :]
            following = tl.load(STATES + D * DV + at).to(tl.float32)
            crossing += tl.sum(following * tl.load(BACK + at).to(tl.float32), 1)
        erased = -through_states(DVALUES, STATES, DV, rows, xs, every, 1.0, S, TYPE, PRECISION)
        erased = tl.dot(turned, erased.to(TYPE), input_precision=PRECISION)
        dk += erased * (beta * into)[:, None]
        dk = tl.dot(both, k, dk, input_precision=PRECISION)
        tl.store(GRAD_Q + token * D + entries, dq.to(GRAD_Q.dtype.element_ty), mask=exists[:, None])
        tl.store(GRAD_K + token * D + entries, dk.to(GRAD_K.dtype.element_ty), mask=exists[:, None])
    dg += tl.where(rows == C - 1, tl.sum(crossing, 0), 0.0)
    dg = tl.cumsum(dg, 0, reverse=True)
    tl.store(GRAD_BETA + token + rows, tl.where(ok, dbeta, 0.0), mask=exists)
    tl.store(GRAD_G + token + rows, dg, mask=exists)
