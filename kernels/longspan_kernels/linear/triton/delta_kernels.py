"""Triton kernels of the gated delta rule. Triton is imported here: import this file lazily.

The equations are those of `delta_chunked.py`. `invert_systems` and `make_operands` prepare all chunks at once, `run_states`
goes from chunk to chunk with a head's state in registers, and `read_states` gives the outputs of all chunks at once. Backwards,
`local_gradients` and `run_states_back` do the same in the other direction, and `finish_gradients` collects what a chunk needs.

Legend: C tokens a chunk, N chunks, D and DV the widths of q, k and of v, BX and BZ columns of them at a time, S the state
[D, DV]. What kernels hand on lies in [B * H, N * C, width] and [B * H, N + 1, D, DV], in `stored_dtype`.
"""

# ruff: noqa: SIM108 (compile-time branches stay statements)
from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from longspan_kernels.linear.triton.kernels import decays_of, runs_of

VARYING = ("length", "chunks")


class Sizes(NamedTuple):
    """What the kernels are compiled for.

    H query heads, K_REPEAT of them a head of k and v; widths and tiles as in the legend; EXACT: products of float32, not
    rounded to tf32.
    """

    H: int
    K_REPEAT: int
    D: int
    DV: int
    C: int
    BX: int
    BZ: int
    EXACT: bool


@triton.jit
def tokens_of(X, x_b, x_h, x_t, bh, REPEAT: tl.constexpr, S: tl.constexpr, first):
    """Where the rows of a chunk begin in x [B, heads, T, width]."""
    b, h = bh // S.H, bh % S.H
    return X + b.to(tl.int64) * x_b + (h // REPEAT).to(tl.int64) * x_h + tl.cast(first, tl.int64) * x_t


@triton.jit
def stop_of(LENGTHS, bh, length, S: tl.constexpr):
    """Tokens that exist."""
    if LENGTHS is not None:
        return tl.minimum(length, tl.load(LENGTHS + bh // S.H)).to(tl.int32)
    return length


@triton.jit
def chunk_of(program, chunks, LENGTHS, length, S: tl.constexpr):
    """(batch and head, number of the chunk, its first token, its rows [C], which of them exist)."""
    bh, n = program // chunks, program % chunks
    first = n * S.C
    rows = tl.arange(0, S.C)
    return bh, n, first, rows, first + rows < stop_of(LENGTHS, bh, length, S)


@triton.jit
def rows_of(X, x_t, rows, columns, ok, TYPE: tl.constexpr):
    """[C, B*] rows, zeros where no token is."""
    return tl.load(X + rows[:, None] * x_t + columns[None, :], mask=ok[:, None], other=0.0).to(TYPE)


@triton.jit
def chunk_decays(G, RUNS, bh, first, rows, ok, length, S: tl.constexpr):
    """into [C], onto [C], within [C, C] with its diagonal, and what is kept of the state over the chunk."""
    lower = rows[:, None] >= rows[None, :]
    if G is not None:
        summed, total = decays_of(G, bh.to(tl.int64) * length + first, 1, rows, ok)
        into = tl.exp(summed)
        onto = tl.exp(tl.minimum(total - summed, 0.0))
        within = tl.where(lower, tl.exp(tl.minimum(summed[:, None] - summed[None, :], 0.0)), 0.0)
        kept = tl.exp(total)
    else:
        into = tl.full((S.C,), 1.0, tl.float32)
        onto = tl.full((S.C,), 1.0, tl.float32)
        within = tl.where(lower, 1.0, 0.0)
        kept = 1.0
    if RUNS is not None:
        own, came, leaves = runs_of(RUNS + (bh // S.H).to(tl.int64) * length, first, rows, length, S.C, False)
        into = tl.where(own == came, into, 0.0)
        onto = tl.where(own == leaves, onto, 0.0)
        within = tl.where(own[:, None] == own[None, :], within, 0.0)
        kept = tl.where(came == leaves, kept, 0.0)
    return into, onto, within, kept


@triton.jit
def key_products(K, k_t, rows, ok, S: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """k k^T [C, C] of a chunk."""
    D: tl.constexpr = S.D
    C: tl.constexpr = S.C
    BX: tl.constexpr = S.BX
    products = tl.zeros((C, C), tl.float32)
    for x in tl.static_range(D // BX):
        k = rows_of(K, k_t, rows, x * BX + tl.arange(0, BX), ok, TYPE)
        products = tl.dot(k, tl.trans(k), products, input_precision=PRECISION)
    return products


@triton.jit(do_not_specialize=VARYING)
def invert_systems(
    K,
    BETA,
    INVERSE,
    G,
    RUNS,
    LENGTHS,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    length: tl.int32,
    chunks: tl.int32,
    S: tl.constexpr,
):
    """INVERSE = (I + L)^-1 [C, C] of every chunk, L_ij = beta_i within_ij k_i . k_j below the diagonal: row after row."""
    C: tl.constexpr = S.C
    TYPE: tl.constexpr = INVERSE.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if S.EXACT else "tf32"
    program = tl.program_id(0)
    bh, _, first, rows, ok = chunk_of(program, chunks, LENGTHS, length, S)
    k_rows = tokens_of(K, k_b, k_h, k_t, bh, S.K_REPEAT, S, first)
    beta = tl.load(BETA + bh.to(tl.int64) * length + first + rows, mask=ok, other=0.0)
    _, _, within, _ = chunk_decays(G, RUNS, bh, first, rows, ok, length, S)
    products = key_products(k_rows, k_t, rows, ok, S, TYPE, PRECISION)
    # The system lies transposed: a row of it is then laid out as a column. The products are symmetric.
    columns = tl.where(rows[:, None] < rows[None, :], products * tl.trans(within) * beta[None, :], 0.0)
    inverse = tl.where(rows[:, None] == rows[None, :], 1.0, 0.0)
    for i in tl.range(1, C):
        row = tl.sum(tl.where(rows[None, :] == i, columns, 0.0), 1)
        known = tl.sum(row[:, None] * inverse, 0)
        inverse = tl.where(rows[:, None] == i, inverse - known[None, :], inverse)
    at = INVERSE + program.to(tl.int64) * C * C
    tl.store(at + rows[:, None] * C + rows[None, :], inverse.to(TYPE))


@triton.jit(do_not_specialize=VARYING)
def make_operands(
    K,
    V,
    BETA,
    INVERSE,
    FROM_VALUES,
    FROM_STATE,
    G,
    RUNS,
    LENGTHS,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    v_b: tl.int64,
    v_h: tl.int64,
    v_t: tl.int64,
    length: tl.int32,
    chunks: tl.int32,
    S: tl.constexpr,
):
    """FROM_VALUES = A beta V [C, DV] and FROM_STATE = A (beta into K) [C, D] of every chunk, A the inverse."""
    D: tl.constexpr = S.D
    DV: tl.constexpr = S.DV
    C: tl.constexpr = S.C
    BX: tl.constexpr = S.BX
    BZ: tl.constexpr = S.BZ
    TYPE: tl.constexpr = INVERSE.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if S.EXACT else "tf32"
    program = tl.program_id(0)
    bh, _, first, rows, ok = chunk_of(program, chunks, LENGTHS, length, S)
    k_rows = tokens_of(K, k_b, k_h, k_t, bh, S.K_REPEAT, S, first)
    v_rows = tokens_of(V, v_b, v_h, v_t, bh, S.K_REPEAT, S, first)
    beta = tl.load(BETA + bh.to(tl.int64) * length + first + rows, mask=ok, other=0.0)
    into, _, _, _ = chunk_decays(G, RUNS, bh, first, rows, ok, length, S)
    inverse = tl.load(INVERSE + program.to(tl.int64) * C * C + rows[:, None] * C + rows[None, :])
    place = program.to(tl.int64) * C
    for z in tl.static_range(DV // BZ):
        columns = z * BZ + tl.arange(0, BZ)
        v = rows_of(v_rows, v_t, rows, columns, ok, tl.float32) * beta[:, None]
        made = tl.dot(inverse, v.to(TYPE), input_precision=PRECISION)
        tl.store(FROM_VALUES + place * DV + rows[:, None] * DV + columns[None, :], made.to(TYPE))
    for x in tl.static_range(D // BX):
        columns = x * BX + tl.arange(0, BX)
        k = rows_of(k_rows, k_t, rows, columns, ok, tl.float32) * (beta * into)[:, None]
        made = tl.dot(inverse, k.to(TYPE), input_precision=PRECISION)
        tl.store(FROM_STATE + place * D + rows[:, None] * D + columns[None, :], made.to(TYPE))


@triton.jit(do_not_specialize=VARYING)
def run_states(
    K,
    FROM_VALUES,
    FROM_STATE,
    VALUES,
    STATES,
    START,
    LAST,
    G,
    RUNS,
    LENGTHS,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    length: tl.int32,
    chunks: tl.int32,
    S: tl.constexpr,
):
    """VALUES = FROM_VALUES - FROM_STATE S, STATES the S before each chunk and after the last, LAST the last in float32."""
    D: tl.constexpr = S.D
    DV: tl.constexpr = S.DV
    C: tl.constexpr = S.C
    BZ: tl.constexpr = S.BZ
    TYPE: tl.constexpr = STATES.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if S.EXACT else "tf32"
    TILES: tl.constexpr = DV // BZ
    bh = tl.program_id(0) // TILES
    rows, xs = tl.arange(0, C), tl.arange(0, D)
    zs = tl.program_id(0) % TILES * BZ + tl.arange(0, BZ)
    stop = stop_of(LENGTHS, bh, length, S)
    k_head = tokens_of(K, k_b, k_h, k_t, bh, S.K_REPEAT, S, 0)
    place = bh.to(tl.int64) * chunks * C
    entries = xs[:, None] * DV + zs[None, :]
    STATES += bh.to(tl.int64) * (chunks + 1) * D * DV
    if START is not None:
        state = tl.load(START + bh.to(tl.int64) * D * DV + entries)
    else:
        state = tl.zeros((D, BZ), tl.float32)
    for step in tl.range(0, chunks):
        n = tl.cast(step, tl.int32)
        first = n * C
        ok = first + rows < stop
        _, onto, _, kept = chunk_decays(G, RUNS, bh, first, rows, ok, length, S)
        k = rows_of(k_head + first.to(tl.int64) * k_t, k_t, rows, xs, ok, TYPE)
        own = place + first
        w = tl.load(FROM_STATE + own * D + rows[:, None] * D + xs[None, :])
        values = tl.load(FROM_VALUES + own * DV + rows[:, None] * DV + zs[None, :]).to(tl.float32)
        held = state.to(TYPE)
        tl.store(STATES + n.to(tl.int64) * D * DV + entries, held)
        values -= tl.dot(w, held, input_precision=PRECISION)
        tl.store(VALUES + own * DV + rows[:, None] * DV + zs[None, :], values.to(TYPE))
        moved = (values * onto[:, None]).to(TYPE)
        state = tl.dot(tl.trans(k), moved, state * kept, input_precision=PRECISION)
    tl.store(STATES + chunks.to(tl.int64) * D * DV + entries, state.to(TYPE))
    tl.store(LAST + bh.to(tl.int64) * D * DV + entries, state)


@triton.jit(do_not_specialize=VARYING)
def read_states(
    Q,
    K,
    VALUES,
    STATES,
    OUT,
    G,
    RUNS,
    LENGTHS,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    scale,
    length: tl.int32,
    chunks: tl.int32,
    S: tl.constexpr,
):
    """OUT = scale * ((q k^T within) VALUES + into q S), contiguous [B * H, T, DV]."""
    D: tl.constexpr = S.D
    DV: tl.constexpr = S.DV
    C: tl.constexpr = S.C
    BX: tl.constexpr = S.BX
    BZ: tl.constexpr = S.BZ
    TYPE: tl.constexpr = STATES.dtype.element_ty
    PRECISION: tl.constexpr = "ieee" if S.EXACT else "tf32"
    TILES: tl.constexpr = DV // BZ
    program = tl.program_id(0) // TILES
    zs = tl.program_id(0) % TILES * BZ + tl.arange(0, BZ)
    bh, n, first, rows, ok = chunk_of(program, chunks, LENGTHS, length, S)
    q_rows = tokens_of(Q, q_b, q_h, q_t, bh, 1, S, first)
    k_rows = tokens_of(K, k_b, k_h, k_t, bh, S.K_REPEAT, S, first)
    into, _, within, _ = chunk_decays(G, RUNS, bh, first, rows, ok, length, S)
    STATES += (bh.to(tl.int64) * (chunks + 1) + n) * D * DV
    scores = tl.zeros((C, C), tl.float32)
    read = tl.zeros((C, BZ), tl.float32)
    for x in tl.static_range(D // BX):
        xs = x * BX + tl.arange(0, BX)
        q, k = rows_of(q_rows, q_t, rows, xs, ok, TYPE), rows_of(k_rows, k_t, rows, xs, ok, TYPE)
        scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
        read = tl.dot(q, tl.load(STATES + xs[:, None] * DV + zs[None, :]), read, input_precision=PRECISION)
    values = tl.load(VALUES + program.to(tl.int64) * C * DV + rows[:, None] * DV + zs[None, :])
    out = tl.dot((scores * within).to(TYPE), values, read * into[:, None], input_precision=PRECISION) * scale
    at = OUT + (bh.to(tl.int64) * length + first) * DV + rows[:, None] * DV + zs[None, :]
    tl.store(at, out.to(OUT.dtype.element_ty), mask=(first + rows < length)[:, None])
