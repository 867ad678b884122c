"""Triton kernels of causal Sinkhorn balancing. Triton is imported here: import this file lazily.

An iteration divides each row by its sum, which rows do side by side, and then each column by its sum over the rows so far,
which is a scan. So rows are cut into tiles of a few, all of which a thread holds for its columns: one launch makes the rows of
an iteration and each tile's sums of columns, and a second adds these up over the tiles, in place. The next iteration begins
with both. The backward pass goes through the iterations from the last, with the scan from the last row.

    r = x - log sum exp over j of x    c = log sum exp over the rows so far of r    x = r - c    (all of them logarithms)
    z_i = z_{i+1} exp(c_i - c_{i+1}) - dx_i    dr = dx + z exp(r - c)    dx = dr - exp(r) sum over j of dr

Legend: BH batch times heads, n blocks in whole units of 16, of which `size` exist at most, ROWS x BC a tile of rows and
columns, t its number.
"""

# Triton adds tuples, but does not unpack into them; their types are its own.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"
from __future__ import annotations

import triton
import triton.language as tl

from longspan_kernels.selected.balance import NOTHING

NONE = tl.constexpr(NOTHING)
# A kernel compiled for one value of these serves all: sizes come in units of 16, so that rows begin at whole ones.
VARYING = ["units", "size", "tiles", "k", "heads", "iterations"]


@triton.jit
def rows_that_exist(BLOCKS, bh, size, heads):
    if BLOCKS is not None:
        size = tl.minimum(size, tl.load(BLOCKS + bh // heads)).to(tl.int32)
    return size


@triton.jit
def log_add(a, b):
    larger = tl.maximum(a, b)
    return larger + tl.log(1.0 + tl.exp(tl.minimum(a, b) - larger))


@triton.jit
def iteration_at(X, SUMS, bh, k, n, tiles, iterations):
    """Pointers to an iteration's rows [n, n] and to its tiles' sums of columns [tiles, n]."""
    at = bh.to(tl.int64) * iterations + k
    return X + at * n * n, SUMS + at * tiles * n


@triton.jit
def program(R, SUMS, BLOCKS, size, n, tiles, k, heads, iterations, ROWS: tl.constexpr):
    """(batch and head, tile, its first row, the end of its columns, rows that exist, pointers to rows and sums of iteration k).

    The last tiles, which have most columns, go first.
    """
    pid = tl.program_id(0)
    bh = pid // tiles
    t = tiles - 1 - pid % tiles
    first, stop, count = t * ROWS, tl.minimum((t + 1) * ROWS, n), rows_that_exist(BLOCKS, bh, size, heads)
    HERE, OURS = iteration_at(R, SUMS, bh, k, n, tiles, iterations)
    return bh, t, first, stop, count, HERE, OURS


@triton.jit
def columns_of(i, count):
    """Row i has those before this one."""
    return tl.where(i < count, i, 0)


@triton.jit
def store_row(X, i, j, n, row):
    """A whole row, what is none of its columns included, so that four numbers go at a time."""
    tl.store(X + i * n + j, row, mask=j < tl.where(i < n, n, 0))


@triton.jit
def load_rows(X, first, j, count, n, other, ROWS: tl.constexpr):
    """A tile as a tuple of its rows [BC], `other` where a row has no such column."""
    rows = ()
    for u in tl.static_range(ROWS):
        # Whole rows are loaded, four numbers at a time, and what is none of theirs is left out after that.
        row = tl.load(X + tl.minimum(first + u, n - 1) * n + j, mask=j < n, other=other)
        rows = rows + (tl.where(j < columns_of(first + u, count), row, other),)
    return rows


@triton.jit
def sums_so_far(rows, SUMS, t, j, known, n, ROWS: tl.constexpr):
    """A tuple like `rows`: the log-sum-exp of each column up to each row, of which the first `known` have sums before."""
    c = tl.load(SUMS + (t - 1) * n + j, mask=j < tl.minimum(t * ROWS, known), other=NONE)  # the first tile has none
    sums = ()
    for u in tl.static_range(ROWS):
        c = log_add(c, rows[u])
        sums = sums + (c,)
    return sums


@triton.jit(do_not_specialize=VARYING)
def balance_rows(
    SCORES,
    R,
    SUMS,
    BLOCKS,
    units: tl.int32,
    size: tl.int32,
    tiles: tl.int32,
    k: tl.int32,
    heads: tl.int32,
    iterations: tl.int32,
    ROWS: tl.constexpr,
    BC: tl.constexpr,
):
    """Rows r of iteration k, and each tile's sums of their columns."""
    n = units * 16
    bh, t, first, stop, count, HERE, OURS = program(R, SUMS, BLOCKS, size, n, tiles, k, heads, iterations, ROWS)
    BEFORE, THEIRS = iteration_at(R, SUMS, bh, k - 1, n, tiles, iterations)
    begins = k == 0  # with the scores
    BEFORE = tl.where(begins, SCORES + bh.to(tl.int64) * n * n, BEFORE)
    THEIRS = tl.where(begins, OURS, THEIRS)  # not looked at
    row = tl.arange(0, ROWS)
    m_i = tl.full([ROWS], NONE, tl.float32)
    l_i = tl.zeros([ROWS], tl.float32)
    for begin in tl.range(0, stop, BC):
        j = begin + tl.arange(0, BC)
        xs = load_rows(BEFORE, first, j, count, n, NONE, ROWS)
        cs = sums_so_far(xs, THEIRS, t, j, tl.where(begins, 0, n), n, ROWS)
        for u in tl.static_range(ROWS):
            inside = j < columns_of(first + u, count)
            x = tl.where(inside, xs[u] - tl.where(begins, 0.0, cs[u]), NONE)
            store_row(HERE, first + u, j, n, x)
            most = tl.max(x, 0)
            total = tl.sum(tl.exp(x - most), 0)
            higher = tl.where(row == u, tl.maximum(m_i, most), m_i)
            l_i = l_i * tl.exp(m_i - higher) + tl.where(row == u, total * tl.exp(most - higher), 0.0)
            m_i = higher
    divided = m_i + tl.log(l_i)
    tl.debug_barrier()  # what one thread wrote, another may read
    for begin in tl.range(0, stop, BC):
        j = begin + tl.arange(0, BC)
        rs = load_rows(HERE, first, j, count, n, NONE, ROWS)
        most = tl.full([BC], NONE, tl.float32)
        made = ()
        for u in tl.static_range(ROWS):
            inside = j < columns_of(first + u, count)
            r = tl.where(inside, rs[u] - tl.sum(tl.where(row == u, divided, 0.0), 0), NONE)
            store_row(HERE, first + u, j, n, r)
            most = tl.maximum(most, r)
            made = made + (r,)
        total = tl.zeros([BC], tl.float32)
        for u in tl.static_range(ROWS):
            total += tl.exp(made[u] - most)
        tl.store(OURS + t * n + j, most + tl.log(total), mask=j < stop)


@triton.jit(do_not_specialize=VARYING)
def balance_columns(
    SUMS, units: tl.int32, tiles: tl.int32, k: tl.int32, iterations: tl.int32, ROWS: tl.constexpr, BC: tl.constexpr
):
    """The tiles' sums of columns, each with all before it, in place."""
    n = units * 16
    blocks = (n + BC - 1) // BC
    pid = tl.program_id(0)
    j = pid % blocks * BC + tl.arange(0, BC)
    OURS = SUMS + ((pid // blocks).to(tl.int64) * iterations + k) * tiles * n
    c = tl.full([BC], NONE, tl.float32)
    for begin in tl.range(pid % blocks * BC // ROWS, tiles, ROWS):  # earlier tiles have no such columns
        sums = ()
        for u in tl.static_range(ROWS):  # all are asked for before the first is needed
            t = begin + u
            sums = sums + (
                tl.load(OURS + t * n + j, mask=j < tl.where(t < tiles, tl.minimum((t + 1) * ROWS, n), 0), other=NONE),
            )
        for u in tl.static_range(ROWS):
            c = log_add(c, sums[u])
            tl.store(OURS + (begin + u) * n + j, c, mask=j < tl.where(begin + u < tiles, n, 0))


@triton.jit(do_not_specialize=VARYING)
def balance_end(
    R,
    SUMS,
    OUT,
    BLOCKS,
    units: tl.int32,
    size: tl.int32,
    tiles: tl.int32,
    k: tl.int32,
    heads: tl.int32,
    iterations: tl.int32,
    ROWS: tl.constexpr,
    BC: tl.constexpr,
):
    """The matrix that the last iteration k leaves."""
    n = units * 16
    bh, t, first, _, count, HERE, OURS = program(R, SUMS, BLOCKS, size, n, tiles, k, heads, iterations, ROWS)
    OUT += bh.to(tl.int64) * n * n
    for begin in tl.range(0, n, BC):
        j = begin + tl.arange(0, BC)
        rs = load_rows(HERE, first, j, count, n, NONE, ROWS)
        cs = sums_so_far(rs, OURS, t, j, n, n, ROWS)
        for u in tl.static_range(ROWS):
            out = tl.where(j < columns_of(first + u, count), tl.exp(rs[u] - cs[u]), 0.0)
            store_row(OUT, first + u, j, n, out)


@triton.jit
def shares_of(HERE, OURS, t, first, j, count, n, ROWS: tl.constexpr):
    """(r, exp(r - c), exp(c - that of the next row)), each a tuple of rows [BC]."""
    rs = load_rows(HERE, first, j, count, n, NONE, ROWS)
    cs = sums_so_far(rs, OURS, t, j, n, n, ROWS)
    following = tl.load(HERE + (first + ROWS) * n + j, mask=j < columns_of(first + ROWS, count), other=NONE)
    rows = rs + (following,)
    shares, decays = (), ()
    for u in tl.static_range(ROWS):
        shares = shares + (tl.where(j < columns_of(first + u, count), tl.exp(rs[u] - cs[u]), 0.0),)
        decays = decays + (1.0 / (1.0 + tl.exp(rows[u + 1] - cs[u])),)
    return rs, shares, decays


@triton.jit
def store_maps(MAPS, t, j, n, tiles, decays, gs, stop, ROWS: tl.constexpr):
    """What a tile makes of the z that comes to its last row, at its first: a z + b, two numbers a column."""
    a, b = decays[ROWS - 1], -gs[ROWS - 1]
    for u in tl.static_range(1, ROWS):
        a = a * decays[ROWS - 1 - u]
        b = b * decays[ROWS - 1 - u] - gs[ROWS - 1 - u]
    tl.store(MAPS + t * n + j, a, mask=j < stop)
    tl.store(MAPS + (tiles + t) * n + j, b, mask=j < stop)


@triton.jit(do_not_specialize=VARYING)
def balance_back_end(
    DOUT,
    R,
    SUMS,
    G,
    MAPS,
    BLOCKS,
    units: tl.int32,
    size: tl.int32,
    tiles: tl.int32,
    k: tl.int32,
    heads: tl.int32,
    iterations: tl.int32,
    ROWS: tl.constexpr,
    BC: tl.constexpr,
):
    """G [BH, n, n], the gradient of what the last iteration k leaves, and MAPS [BH, 2, tiles, n] of its tiles."""
    n = units * 16
    bh, t, first, stop, count, HERE, OURS = program(R, SUMS, BLOCKS, size, n, tiles, k, heads, iterations, ROWS)
    DOUT += bh.to(tl.int64) * n * n
    G += bh.to(tl.int64) * n * n
    MAPS += bh.to(tl.int64) * 2 * tiles * n
    for begin in tl.range(0, stop, BC):
        j = begin + tl.arange(0, BC)
        _, shares, decays = shares_of(HERE, OURS, t, first, j, count, n, ROWS)
        douts = load_rows(DOUT, first, j, count, n, 0.0, ROWS)
        gs = ()
        for u in tl.static_range(ROWS):
            g = douts[u] * shares[u]
            store_row(G, first + u, j, n, g)
            gs = gs + (g,)
        store_maps(MAPS, t, j, n, tiles, decays, gs, stop, ROWS)


@triton.jit(do_not_specialize=VARYING)
def balance_back_columns(MAPS, units: tl.int32, tiles: tl.int32, ROWS: tl.constexpr, BC: tl.constexpr):
    """The second number of each tile becomes z at its first row."""
    n = units * 16
    blocks = (n + BC - 1) // BC
    pid = tl.program_id(0)
    j = pid % blocks * BC + tl.arange(0, BC)
    MAPS += (pid // blocks).to(tl.int64) * 2 * tiles * n
    z = tl.zeros([BC], tl.float32)
    lowest = pid % blocks * BC // ROWS  # tiles before have no such columns
    for begin in tl.range(0, tiles - lowest, ROWS):
        many, ones = (), ()
        for u in tl.static_range(ROWS):  # all are asked for before the first is needed
            t = tiles - 1 - begin - u
            known = j < tl.where(t >= lowest, tl.minimum((t + 1) * ROWS, n), 0)
            many = many + (tl.load(MAPS + t * n + j, mask=known, other=1.0),)
            ones = ones + (tl.load(MAPS + (tiles + t) * n + j, mask=known, other=0.0),)
        for u in tl.static_range(ROWS):
            t = tiles - 1 - begin - u
            z = many[u] * z + ones[u]
            tl.store(MAPS + (tiles + t) * n + j, z, mask=j < tl.where(t >= lowest, n, 0))


@triton.jit(do_not_specialize=VARYING)
def balance_back(
    R,
    SUMS,
    G,
    MAPS,
    NEW_MAPS,
    DSCORES,
    BLOCKS,
    units: tl.int32,
    size: tl.int32,
    tiles: tl.int32,
    k: tl.int32,
    heads: tl.int32,
    iterations: tl.int32,
    ROWS: tl.constexpr,
    BC: tl.constexpr,
):
    """From G, the gradient of what iteration k leaves, that of what it begins with, in place, and the tiles' maps for it.

    Of the first iteration that is the gradient of the scores. MAPS hold z of iteration k; the maps for the one before go to
    other memory, as a tile reads the z of the next.
    """
    n = units * 16
    bh, t, first, stop, count, HERE, OURS = program(R, SUMS, BLOCKS, size, n, tiles, k, heads, iterations, ROWS)
    BEFORE, THEIRS = iteration_at(R, SUMS, bh, k - 1, n, tiles, iterations)
    G += bh.to(tl.int64) * n * n
    DSCORES += bh.to(tl.int64) * n * n
    MAPS += bh.to(tl.int64) * 2 * tiles * n
    NEW_MAPS += bh.to(tl.int64) * 2 * tiles * n
    row = tl.arange(0, ROWS)
    totals = tl.zeros([ROWS], tl.float32)
    for begin in tl.range(0, stop, BC):
        j = begin + tl.arange(0, BC)
        _, shares, decays = shares_of(HERE, OURS, t, first, j, count, n, ROWS)
        gs = load_rows(G, first, j, count, n, 0.0, ROWS)
        z = tl.load(MAPS + (tiles + t + 1) * n + j, mask=j < tl.where(t + 1 < tiles, stop, 0), other=0.0)
        for v in tl.static_range(ROWS):
            z = decays[ROWS - 1 - v] * z - gs[ROWS - 1 - v]
            inside = j < columns_of(first + ROWS - 1 - v, count)
            dr = tl.where(inside, gs[ROWS - 1 - v] + z * shares[ROWS - 1 - v], 0.0)
            totals += tl.where(row == ROWS - 1 - v, tl.sum(dr, 0), 0.0)
            store_row(G, first + ROWS - 1 - v, j, n, dr)
    tl.debug_barrier()  # what one thread wrote, another may read
    ends = k == 0
    MADE = tl.where(ends, DSCORES, G)
    for begin in tl.range(0, tl.where(ends, n, stop), BC):
        j = begin + tl.arange(0, BC)
        rs = load_rows(HERE, first, j, count, n, NONE, ROWS)
        drs = load_rows(G, first, j, count, n, 0.0, ROWS)
        dxs = ()
        for u in tl.static_range(ROWS):
            inside = j < columns_of(first + u, count)
            dx = tl.where(inside, drs[u] - tl.exp(rs[u]) * tl.sum(tl.where(row == u, totals, 0.0), 0), 0.0)
            store_row(MADE, first + u, j, n, dx)
            dxs = dxs + (dx,)
        if k > 0:
            _, _, decays = shares_of(BEFORE, THEIRS, t, first, j, count, n, ROWS)
            store_maps(NEW_MAPS, t, j, n, tiles, decays, dxs, stop, ROWS)
