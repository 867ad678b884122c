"""Every family against its definition written out in plain Python loops, and its count against its mask."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.patterns import (
    BigBird,
    BlockTable,
    Fixed,
    Full,
    Global,
    Local,
    Local2D,
    Longformer,
    PerHead,
    Predicate,
    Random,
    Strided,
)

torch.set_num_threads(1)
EXAMPLES = settings(max_examples=60, deadline=None)


def local(i, j, causal, window, dilation):
    near = 0 <= i - j < window * dilation if causal else abs(i - j) <= (window // 2) * dilation
    return near and (i - j) % dilation == 0


def fixed(i, j, stride, summary):
    return i // stride == j // stride or j % stride >= stride - summary


def dense(q_len, k_len, causal, keeps):
    """[Tq][Tk] lists of bools from a definition over positions."""
    first = k_len - q_len
    return [[bool(keeps(r + first, j)) and (not causal or j <= r + first) for j in range(k_len)] for r in range(q_len)]


@st.composite
def lengths(draw, most=40):
    causal = draw(st.booleans())
    k_len = draw(st.integers(1, most))
    q_len = draw(st.integers(1, k_len if causal else most))
    return q_len, k_len, causal


def check(pattern, q_len, k_len, causal, keeps, heads=1):
    mask = pattern.mask(q_len, k_len, heads=heads, causal=causal)
    assert mask.shape == (heads, q_len, k_len) and mask.dtype == torch.bool
    for head in range(heads):
        assert mask[head].tolist() == dense(q_len, k_len, causal, keeps)


@EXAMPLES
@given(lengths())
def test_full(shape):
    check(Full(), *shape, lambda i, j: True, heads=2)


@EXAMPLES
@given(lengths(), st.integers(1, 12), st.integers(1, 5))
def test_local(shape, window, dilation):
    check(Local(window, dilation), *shape, lambda i, j: local(i, j, shape[2], window, dilation))


def test_local_counts_its_keys():
    assert Local(4, 3).mask(40, causal=True)[0, 30].sum() == 4
    assert Local(4, 3).mask(40)[0, 20].sum() == Local(5, 3).mask(40)[0, 20].sum() == 5
    assert Local(1).mask(5)[0].equal(torch.eye(5, dtype=torch.bool))


@EXAMPLES
@given(lengths(), st.integers(1, 50))
def test_strided(shape, stride):
    check(Strided(stride), *shape, lambda i, j: (i - j) % stride == 0)


@EXAMPLES
@given(lengths(), st.integers(1, 12), st.data())
def test_fixed(shape, stride, data):
    summary = data.draw(st.integers(1, stride))
    check(Fixed(stride, summary), *shape, lambda i, j: fixed(i, j, stride, summary))


@EXAMPLES
@given(lengths(), st.sets(st.integers(0, 60), max_size=6), st.integers(0, 50))
def test_global(shape, positions, first):
    check(Global(positions=positions), *shape, lambda i, j: i in positions or j in positions)
    check(Global(first=first), *shape, lambda i, j: 0 <= i < first or j < first)


@EXAMPLES
@given(lengths(), st.integers(1, 9), st.sets(st.integers(0, 60), max_size=4))
def test_longformer(shape, window, positions):
    def keeps(i, j):
        return local(i, j, shape[2], window, 1) or i in positions or j in positions

    check(Longformer(window, positions), *shape, keeps)
    both = Local(window) | Global(positions=positions)
    assert both.mask(shape[0], shape[1], causal=shape[2]).equal(Longformer(window, positions).mask(*shape[:2], causal=shape[2]))


@EXAMPLES
@given(lengths(), st.integers(1, 9), st.booleans(), st.data())
def test_block_table(shape, size, by_head, data):
    q_len, k_len, causal = shape
    needed = -(-k_len // size)
    heads, nq, nk = 2, needed + data.draw(st.integers(0, 2)), needed + data.draw(st.integers(0, 2))
    table = torch.rand(heads, nq, nk, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) < 0.5
    mask = BlockTable(table if by_head else table[0], size).mask(q_len, k_len, heads=heads, causal=causal)
    for head in range(heads):
        own = table[head if by_head else 0].tolist()
        # Queries before position 0 have no block, so no row of the table.
        expected = dense(q_len, k_len, causal, lambda i, j, own=own: i >= 0 and own[i // size][j // size])
        assert mask[head].tolist() == expected


@EXAMPLES
@given(lengths(), st.integers(1, 7))
def test_predicate(shape, period):
    def mask_mod(b, h, q_idx, kv_idx):
        return ((q_idx + h) % period == 0) | (kv_idx <= b)

    mask = Predicate(mask_mod).mask(*shape[:2], heads=3, causal=shape[2])
    for head in range(3):
        assert mask[head].tolist() == dense(*shape, lambda i, j, h=head: (i + h) % period == 0 or j <= 0)


@EXAMPLES
@given(lengths(), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_random_rows_hold_distinct_whole_blocks(shape, size, blocks, seed):
    q_len, k_len, causal = shape
    mask = Random(blocks, size, seed).mask(q_len, k_len, heads=2, causal=causal)
    first, count = k_len - q_len, -(-k_len // size)
    for head, r in itertools.product(range(2), range(q_len)):
        i = r + first
        seen = {j // size for j in range(k_len) if mask[head, r, j]}
        visible = range(i // size + 1) if causal else range(count)
        assert seen <= set(visible) and len(seen) == min(blocks, len(visible))
        # Whole blocks, up to the query itself where causal; every row of a query block sees the same ones.
        assert mask[head, r].tolist() == [j // size in seen and (not causal or j <= i) for j in range(k_len)]
        if r and i // size == (i - 1) // size and not causal:
            assert mask[head, r].equal(mask[head, r - 1])


def bigbird_parts(size, window, globals_, k_len, causal):
    """For a query position: the blocks of window and globals (None for all), by the definition's sentences."""
    count = -(-k_len // size)
    end = 0 if causal else globals_ // 2
    anchors = {b for b in range(count) if b < globals_ - end or b >= count - end}

    def structured(i):
        row = i // size
        if row in anchors:
            return None
        return anchors | {b for b in range(count) if abs(b - row) <= window // 2}

    return structured, count


@EXAMPLES
@given(lengths(60), st.integers(1, 7), st.sampled_from([1, 3, 5]), st.integers(0, 4), st.integers(0, 4), st.integers(0, 3))
def test_bigbird(shape, size, window, randoms, globals_, seed):
    q_len, k_len, causal = shape
    mask = BigBird(size, window, randoms, globals_, seed).mask(q_len, k_len, heads=2, causal=causal)
    structured, count = bigbird_parts(size, window, globals_, k_len, causal)
    for head, r in itertools.product(range(2), range(q_len)):
        i = r + k_len - q_len
        seen = {j // size for j in range(k_len) if mask[head, r, j]}
        assert mask[head, r].tolist() == [j // size in seen and (not causal or j <= i) for j in range(k_len)]
        visible = set(range(min(count, i // size + 1))) if causal else set(range(count))
        expected = structured(i)
        if expected is None:
            assert seen == visible
            continue
        drawn, free = seen - expected, visible - expected
        assert expected & visible <= seen <= visible
        assert len(drawn) == min(randoms, len(free))


def grid_of(width, window, dilation, shifted):
    """A grid of that width that holds all lengths drawn here."""
    height = -(-300 // width)
    fits = (2 * (window // 2) + 1) * dilation <= min(height, width)
    return Local2D(height, width, window, dilation, "shift" if shifted and fits else "cut")


FAMILIES = st.one_of(
    st.just(Full()),
    st.builds(grid_of, st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.booleans()),
    st.builds(Local, st.integers(1, 30), st.integers(1, 6)),
    st.builds(Strided, st.integers(1, 40)),
    st.integers(1, 30).flatmap(lambda stride: st.builds(Fixed, st.just(stride), st.integers(1, stride))),
    st.builds(Global, first=st.integers(0, 20)),
    st.builds(Global, positions=st.sets(st.integers(0, 300), max_size=8)),
    st.builds(Random, st.integers(1, 5), st.integers(3, 70), st.integers(0, 3)),
    st.builds(BigBird, st.integers(3, 70), st.sampled_from([1, 3]), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
    st.builds(Longformer, st.integers(1, 30), st.sets(st.integers(0, 300), max_size=8)),
    st.builds(lambda seed, size: table_of(seed, size), st.integers(0, 9), st.integers(5, 40)),
    st.builds(lambda n: Predicate(residue_predicate(n)), st.integers(1, 9)),
)
PATTERNS = st.recursive(
    FAMILIES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a, b: a & b, inner, inner),
    ),
    max_leaves=4,
)


def table_of(seed, size):
    blocks = -(-200 // size)
    return BlockTable(torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(seed)) < 0.3, size)


def residue_predicate(n):
    return lambda b, h, q_idx, kv_idx: (q_idx * 3 + kv_idx + h) % n == 0


@settings(max_examples=150, deadline=None)
@given(PATTERNS, st.integers(0, 200), st.integers(1, 3), st.booleans())
def test_live_pairs_equals_the_mask(pattern, length, heads, causal):
    expected = int(pattern.mask(length, heads=heads, causal=causal).sum())
    assert pattern.live_pairs(length, heads=heads, causal=causal) == expected


@EXAMPLES
@given(FAMILIES, FAMILIES, lengths(60))
def test_composition_is_elementwise(a, b, shape):
    q_len, k_len, causal = shape
    one, two = (p.mask(q_len, k_len, heads=2, causal=causal) for p in (a, b))
    assert (a | b).mask(q_len, k_len, heads=2, causal=causal).equal(one | two)
    assert (a & b).mask(q_len, k_len, heads=2, causal=causal).equal(one & two)


@EXAMPLES
@given(st.lists(FAMILIES, min_size=2, max_size=4), FAMILIES, lengths(60))
def test_per_head_takes_each_head_from_its_pattern(patterns, other, shape):
    q_len, k_len, causal = shape
    heads = len(patterns)
    own = torch.stack([p.mask(q_len, k_len, heads=heads, causal=causal)[h] for h, p in enumerate(patterns)])
    shared = other.mask(q_len, k_len, heads=heads, causal=causal)
    per_head = PerHead(patterns)
    assert per_head.mask(q_len, k_len, causal=causal).equal(own)
    assert (per_head | other).mask(q_len, k_len, heads=heads, causal=causal).equal(own | shared)
    assert (other & per_head).mask(q_len, k_len, heads=heads, causal=causal).equal(own & shared)
    if q_len == k_len:
        assert per_head.live_pairs(q_len, causal=causal) == int(own.sum())
        assert (per_head & other).live_pairs(q_len, causal=causal) == int((own & shared).sum())


@EXAMPLES
@given(PATTERNS, st.integers(1, 40), st.integers(0, 40))
def test_more_keys_than_queries_are_the_last_rows(pattern, q_len, more):
    """A query is at i = r + Tk - Tq, so fewer queries are the last rows of the square mask."""
    k_len = q_len + more
    for causal in (False, True):
        square = pattern.mask(k_len, heads=2, causal=causal)
        assert pattern.mask(q_len, k_len, heads=2, causal=causal).equal(square[:, more:])


@pytest.mark.parametrize("pattern", [Full(), Local(4), BigBird(4), Random(2, 4)], ids=lambda p: p.key)
def test_causal_needs_as_many_keys_as_queries(pattern):
    with pytest.raises(ValueError, match=r"causal.*9 queries and 8 keys"):
        pattern.mask(9, 8, causal=True)
    assert pattern.mask(9, 8).shape == (1, 9, 8)
