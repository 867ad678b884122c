"""Random draws: stateless, distinct, uniform; the same whatever the length, the heads or the order of asking."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.patterns import BigBird, PerHead, Random, draws
from longspan.patterns.draws import distinct_draws, mix

torch.set_num_threads(1)


def test_mix_is_a_bijection_and_does_not_overflow():
    x = torch.arange(1 << 16)
    assert len(torch.unique(mix(x))) == 1 << 16
    assert mix(x)[:5].tolist() == [mix(n) for n in range(5)]  # Python's ints do not wrap
    assert int(mix(torch.tensor(0xFFFFFFFF))) == mix(0xFFFFFFFF) < 1 << 32


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 70), st.integers(0, 30), st.integers(1, 8))
def test_draws_are_distinct_and_in_range(seed, available, draws):
    rows = torch.arange(50)
    drawn = distinct_draws(seed, torch.arange(3), rows, torch.full_like(rows, available), draws)
    assert drawn.shape == (3, 50, min(draws, available))
    if available:
        assert drawn.min() >= 0 and drawn.max() < available
        assert all(len(set(row)) == len(row) for row in drawn.flatten(0, 1).tolist())


def test_draws_are_uniform_over_subsets():
    """All 20 subsets of 3 out of 6, 40,000 draws: chi-square with 19 degrees of freedom exceeds 44 once in a thousand."""
    rows = torch.arange(20000)
    drawn = distinct_draws(5, torch.tensor([0, 7]), rows, torch.full_like(rows, 6), 3)
    counts = torch.bincount((1 << drawn).sum(2).flatten(), minlength=64)
    counts = counts[counts > 0].double()
    assert len(counts) == 20
    expected = drawn.shape[0] * drawn.shape[1] / 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 44


def test_neighbouring_seeds_heads_and_rows_are_unrelated():
    rows = torch.arange(2000)

    def draw(seed, heads):
        return distinct_draws(seed, torch.tensor(heads), rows, torch.full_like(rows, 10), 1)[..., 0]

    a = draw(0, [0, 1])
    for other in (draw(1, [0])[0], a[1], a[0].roll(1), draw(1 << 32, [0])[0]):
        agree = (a[0] == other).double().mean()
        assert 0.06 < agree < 0.14  # 0.1 by chance, with a deviation of 0.007


def test_a_draw_is_a_golden_value():
    """Checkpoints rely on draws staying as they are: a change here changes every trained random pattern."""
    rows = torch.arange(40, 46)
    drawn = distinct_draws(0, torch.tensor([0, 3]), rows, rows + 1, 3)
    assert drawn.tolist() == GOLDEN


GOLDEN = [
    [[26, 24, 33], [39, 7, 14], [39, 27, 9], [30, 0, 43], [16, 0, 20], [4, 2, 29]],
    [[11, 10, 40], [31, 26, 33], [31, 24, 38], [28, 17, 24], [3, 32, 41], [22, 29, 16]],
]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([Random(2, 4), BigBird(4, 3, 2, 1), Random(3, 5, 9) | BigBird(3, 1, 1, 3)]),
    st.integers(1, 90),
    st.integers(0, 60),
)
def test_causal_draws_do_not_depend_on_the_length(pattern, length, more):
    short = pattern.mask(length, heads=2, causal=True)
    long = pattern.mask(length + more, heads=2, causal=True)
    assert long[:, :length, :length].equal(short)


def test_a_head_draws_alike_among_any_heads():
    for pattern in (Random(2, 4), BigBird(4, 1, 2, 1)):
        alone, many = pattern.mask(60, heads=1), pattern.mask(60, heads=6)
        assert many[:1].equal(alone)
        assert not many[0].equal(many[1])
        mixed = PerHead([BigBird(4), pattern, BigBird(4), pattern, BigBird(4), pattern])
        assert mixed.mask(60)[1::2].equal(many[1::2])
        assert mixed.live_pairs(60) == int(mixed.mask(60).sum())


def test_rows_differ_within_a_head():
    mask = Random(2, 4).mask(400)[0, ::4, ::4]
    assert len(torch.unique(mask, dim=0)) > 90


def test_a_million_tokens_draw_quickly():
    """Vectorised over heads and rows: a loop over 32 * 16384 rows would take minutes."""
    import time

    start = time.perf_counter()
    rules = BigBird(64).head_rules(1 << 20, 1 << 20, 32, True)
    assert time.perf_counter() - start < 5.0
    assert len(rules) == 1 and rules[0][1].per_head


def test_what_is_added_to_row_numbers_fits_32_bits():
    """Inductor adds it to row numbers of 32 bits, and Triton 3.6 refuses to compile a larger number there."""
    assert -(1 << 31) <= draws.GOLDEN < 1 << 31
