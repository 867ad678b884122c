"""Triton kernels of causal Sinkhorn balancing for few blocks: one program goes through all of a head, in one launch a pass.

Tiles of a few rows come one after another, and each goes through all iterations in registers. A thread holds all rows of a tile
for its columns, so that the scan of a column needs no other thread; what it leaves goes to the next tile through memory. The
tile's rows are stacked for their sums, so that one exchange between threads serves all of them. What comes next is asked for
before what is here is worked on, as no other program hides the wait.

A running log-sum-exp is kept as c = m + log s, with m the largest so far: a row takes one exponential, of its distance to m.
The backward pass comes from the last tile, and takes exp(r - c) and exp(c_i - c_{i+1}) from s, without logarithms. Logarithms
are to base 2, what is kept for the backward pass included. Formulas and legend: `balance_kernels.py`. Triton is imported here:
import this file lazily.
"""

# Triton adds tuples, but does not unpack into them; their types are its own.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.block_sparse.triton.common import quick_log2
from longspan_kernels.selected.triton.balance_kernels import NONE, columns_of, rows_that_exist, store_row

LOG2E = tl.constexpr(1.4426950408889634)
VARYING = ["units", "size", "heads", "iterations"]


@triton.jit
def stacked(rows):
    """Eight rows [BC] as [BC, 2, 2, 2], each thread with all rows of its columns."""
    even = tl.join(tl.join(rows[0], rows[4]), tl.join(rows[2], rows[6]))
    return tl.join(even, tl.join(tl.join(rows[1], rows[5]), tl.join(rows[3], rows[7])))


@triton.jit
def unstacked(x):
    """The eight rows as a tuple."""
    even, odd = tl.split(x)
    a, b = tl.split(even)
    c, d = tl.split(odd)
    r0, r4 = tl.split(a)
    r2, r6 = tl.split(b)
    r1, r5 = tl.split(c)
    r3, r7 = tl.split(d)
    return r0, r1, r2, r3, r4, r5, r6, r7


@triton.jit
def tile_rows(X, first, j, n, ROWS: tl.constexpr):
    """The rows of a tile from its first on, stacked, with whatever they hold."""
    rows = ()
    for u in tl.static_range(ROWS):
        rows = rows + (tl.load(X + (first + u) * n + j, mask=j < n, other=0.0),)
    return stacked(rows)


@triton.jit
def masked(x, first, j, count, other, ROWS: tl.constexpr):
    """A tile's rows as a tuple, `other` where a row has no such column."""
    given, rows = unstacked(x), ()
    for u in tl.static_range(ROWS):
        rows = rows + (tl.where(j < columns_of(first + u, count), given[u], other),)
    return rows


@triton.jit
def sums_before(SUMS, t, j, n, ROWS: tl.constexpr):
    """The log-sum-exp of each column up to tile t, of which columns from its first row on have none."""
    return tl.load(SUMS + (t - 1) * n + j, mask=j < tl.minimum(t * ROWS, n), other=NONE)


@triton.jit(do_not_specialize=VARYING)
def balance_head(
    SCORES,
    R,
    SUMS,
    OUT,
    BLOCKS,
    units: tl.int32,
    size: tl.int32,
    heads: tl.int32,
    iterations: tl.int32,
    ROWS: tl.constexpr,
    BC: tl.constexpr,
):
    """OUT [BH, n, n]; R [BH, iterations, n, n] and SUMS [BH, iterations, tiles, n] are kept for the backward pass."""
    n = units * 16
    tiles = n // ROWS
    bh = tl.program_id(0)
    count = rows_that_exist(BLOCKS, bh, size, heads)
    before = bh.to(tl.int64) * iterations
    SCORES += bh.to(tl.int64) * n * n
    OUT += bh.to(tl.int64) * n * n
    j = tl.arange(0, BC)
    coming = tile_rows(SCORES, 0, j, n, ROWS)
    for t in tl.range(0, tiles):
        first = t * ROWS
        x = stacked(masked(coming, first, j, count, NONE, ROWS)) * LOG2E
        coming = tile_rows(SCORES, tl.minimum(first + ROWS, n - ROWS), j, n, ROWS)
        tl.debug_barrier()  # what one thread wrote, another may read
        for k in tl.range(0, iterations):
            HERE, OURS = R + (before + k) * n * n, SUMS + (before + k) * tiles * n
            m_j = sums_before(OURS, t, j, n, ROWS)
            most = tl.max(x, 0)
            total = tl.sum(tl.exp2(x - most[None, :, :, :]), 0)
            rows = unstacked(x - (most + quick_log2(total))[None, :, :, :])
            s_j = tl.full([BC], 1.0, tl.float32)
            left = ()
            for u in tl.static_range(ROWS):
                inside = j < columns_of(first + u, count)
                r = tl.where(inside, rows[u], NONE)
                store_row(HERE, first + u, j, n, r)
                share = tl.exp2(-tl.abs(r - m_j))
                s_j = tl.where(r > m_j, s_j * share + 1.0, s_j + share)
                m_j = tl.maximum(m_j, r)
                c = m_j + quick_log2(s_j)
                left = left + (tl.where(inside, r - c, NONE),)
                if u == ROWS - 1:
                    tl.store(OURS + t * n + j, c, mask=j < n)
            x = stacked(left)
        rows = unstacked(x)
        for u in tl.static_range(ROWS):
            out = tl.where(j < columns_of(first + u, count), tl.exp2(rows[u]), 0.0)
            store_row(OUT, first + u, j, n, out)


@triton.jit(do_not_specialize=VARYING)
def balance_head_back(
    DOUT,
    R,
    SUMS,
    Z,
    DSCORES,
    BLOCKS,
    units: tl.int32,
    size: tl.int32,
    heads: tl.int32,
    iterations: tl.int32,
    ROWS: tl.constexpr,
    BC: tl.constexpr,
):
    """DSCORES [BH, n, n]. Z [BH, iterations, n] takes what each iteration's scan brings from one tile to the one before."""
    n = units * 16
    tiles = n // ROWS
    bh = tl.program_id(0)
    count = rows_that_exist(BLOCKS, bh, size, heads)
    before = bh.to(tl.int64) * iterations
    DOUT += bh.to(tl.int64) * n * n
    DSCORES += bh.to(tl.int64) * n * n
    j = tl.arange(0, BC)
    last = before + iterations - 1
    coming = tile_rows(DOUT, n - ROWS, j, n, ROWS)
    next_rows = tile_rows(R + last * n * n, n - ROWS, j, n, ROWS)
    next_sums = sums_before(SUMS + last * tiles * n, tiles - 1, j, n, ROWS)
    for step in tl.range(0, tiles):
        t = tiles - 1 - step
        first = t * ROWS
        g = stacked(masked(coming, first, j, count, 0.0, ROWS)).to(tl.float32)
        coming = tile_rows(DOUT, tl.maximum(first - ROWS, 0), j, n, ROWS)
        tl.debug_barrier()  # what one thread wrote, another may read
        for done in tl.range(0, iterations):
            k = iterations - 1 - done
            z = tl.load(Z + (before + k) * n + j, mask=j < tl.where(step > 0, n, 0), other=0.0)
            rows, m_j = masked(next_rows, first, j, count, NONE, ROWS), next_sums
            next_tile = tl.maximum(tl.where(k > 0, t, t - 1), 0)
            next_at = before + tl.where(k > 0, k, iterations) - 1
            next_rows = tile_rows(R + next_at * n * n, next_tile * ROWS, j, n, ROWS)
            next_sums = sums_before(SUMS + next_at * tiles * n, next_tile, j, n, ROWS)
            s_j = tl.full([BC], 1.0, tl.float32)
            shares, decays = (), ()
            for u in tl.static_range(ROWS):
                share = tl.exp2(-tl.abs(rows[u] - m_j))
                higher = rows[u] > m_j
                old, new = tl.where(higher, s_j * share, s_j), tl.where(higher, 1.0, share)
                s_j = old + new
                inverse = 1.0 / s_j
                shares = shares + (tl.where(j < columns_of(first + u, count), new * inverse, 0.0),)
                decays = decays + (old * inverse,)
                m_j = tl.maximum(m_j, rows[u])
            gs = unstacked(g)
            drs = ()
            for v in tl.static_range(ROWS):
                share = shares[ROWS - 1 - v]
                dx = gs[ROWS - 1 - v] * tl.where(done == 0, share, 1.0)
                z = z - dx  # came times the decay from the next row
                drs = (tl.where(j < columns_of(first + ROWS - 1 - v, count), dx + z * share, 0.0),) + drs
                z = z * decays[ROWS - 1 - v]
            tl.store(Z + (before + k) * n + j, z, mask=j < n)
            dr = stacked(drs)
            g = dr - tl.exp2(stacked(rows)) * tl.sum(dr, 0)[None, :, :, :]
        gs = unstacked(g)
        for u in tl.static_range(ROWS):
            store_row(DSCORES, first + u, j, n, gs[u])
