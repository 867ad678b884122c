"""The choice of tokens by index scores on Triton, interpreted, against a stable sort: ties, lengths, chunks, crowded bounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.errors import KernelError
from longspan_kernels.launch.graphs import clear_caches
from longspan_kernels.selected import choose_tokens

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the compiled kernels")


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def by_sorting(queries, keys, weights, n, ends):
    """[B, T, n]: the earliest among equals first, as a stable sort leaves them."""
    scores = ((queries.double() @ keys.double()[:, None].mT).relu() * weights.double()[..., None]).sum(1)  # (B, T, T)
    out = torch.full((*scores.shape[:2], n), -1, dtype=torch.int32)
    for b, end in enumerate(ends):
        for t in range(end):
            best = scores[b, t, : t + 1].sort(descending=True, stable=True).indices[:n].sort().values
            out[b, t, : len(best)] = best
    return out


def drawn(seed, batch, heads, length, width, spread):
    """Small whole numbers: every sum is exact, and many scores are equal."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((batch, length, heads, width), (batch, length, width), (batch, length, heads))
    queries, keys, weights = ((torch.randn(shape, generator=g) * spread).round() for shape in shapes)
    return queries.transpose(1, 2), keys, weights.transpose(1, 2)


@pytest.mark.usefixtures("interpreted")
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    batch=st.integers(1, 2),
    heads=st.sampled_from([1, 3, 5]),
    length=st.integers(1, 50),
    width=st.sampled_from([16, 20]),
    n=st.integers(1, 20),
    spread=st.sampled_from([0.4, 1.5]),
    few_at_once=st.booleans(),
    data=st.data(),
)
def test_the_choice_is_that_of_a_stable_sort(seed, batch, heads, length, width, n, spread, few_at_once, data):
    from longspan_kernels.selected.triton import configs

    queries, keys, weights = drawn(seed, batch, heads, length, width, spread)
    ends = data.draw(st.none() | st.lists(st.integers(0, length), min_size=batch, max_size=batch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "SCORE_BYTES", 1 if few_at_once else configs.SCORE_BYTES)  # 32 queries at a time
        clear_caches()
        lengths = None if ends is None else torch.tensor(ends)
        chosen = choose_tokens(queries, keys, weights, n, lengths=lengths, backend="triton")
        clear_caches()
    assert chosen.equal(by_sorting(queries, keys, weights, n, ends or [length] * batch))


@pytest.mark.usefixtures("interpreted")
def test_more_tokens_above_the_bound_than_there_is_room_for():
    """The best tokens share a few lanes, so the bound is low: the row itself is searched."""
    queries, keys, weights = drawn(0, 1, 2, 68, 16, 1.5)
    good = torch.arange(68) % 32 < 3  # of 32 lanes
    keys = torch.where(good[:, None], 9.0, keys)
    queries, weights = queries.abs(), weights.abs() + 1.0
    chosen = choose_tokens(queries, keys, weights, 4, backend="triton")
    assert chosen.equal(by_sorting(queries, keys, weights, 4, [68]))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("below", [0.0, 0.5, 1.0], ids=["all equal", "half of them below", "few equal the best"])
def test_queries_whose_best_score_is_shared_by_more_tokens_than_they_pick(below):
    """No weight is positive, so 0 is the best score; tokens that only some heads know have it or less."""
    queries, keys, weights = drawn(3, 1, 2, 150, 16, 1.5)
    g = torch.Generator().manual_seed(4)
    keys = torch.where(torch.rand(150, 1, generator=g) < below, keys, 0.0)
    chosen = choose_tokens(queries, keys, -weights.abs(), 4, backend="triton")
    assert chosen.equal(by_sorting(queries, keys, -weights.abs(), 4, [150]))


@pytest.mark.usefixtures("interpreted")
def test_more_picks_than_lanes(monkeypatch):
    from longspan_kernels.selected.triton import configs

    clear_caches()
    monkeypatch.setattr(configs, "MOST_LANES", 32)
    queries, keys, weights = drawn(0, 1, 2, 44, 16, 1.5)
    chosen = choose_tokens(queries, keys, weights, 40, backend="triton")
    clear_caches()
    assert chosen.equal(by_sorting(queries, keys, weights, 40, [44]))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("better", [(), (3, 30)])
def test_among_many_equal_scores_the_earliest_are_chosen(better):
    queries, keys, weights = torch.ones(1, 1, 40, 16), torch.ones(1, 40, 16), torch.ones(1, 1, 40)
    keys[0, list(better)] = 2.0
    chosen = choose_tokens(queries, keys, weights, 5, backend="triton")
    assert chosen.equal(by_sorting(queries, keys, weights, 5, [40]))


@pytest.mark.usefixtures("interpreted")
def test_scores_of_minus_infinity_are_never_chosen():
    queries, keys, weights = torch.ones(1, 1, 40, 16), torch.ones(1, 40, 16), torch.ones(1, 1, 40)
    keys[0, ::2, 0] = float("inf")
    chosen = choose_tokens(queries, keys, -weights, 30, backend="triton")
    assert chosen[0, 39].tolist() == [*range(1, 40, 2), *[-1] * 10]


@pytest.mark.parametrize("backend", ["triton", "blocked"])
@pytest.mark.parametrize(
    ("keys", "weights", "said"),
    [
        ((1, 40, 8), (2, 3, 40), r"keys \(1, 40, 8\) do not fit .* give \(2, 40, 8\)"),
        ((2, 20, 8), (2, 3, 40), "keys .* do not fit"),
        ((2, 40, 4), (2, 3, 40), "keys .* do not fit"),
        ((2, 40, 8), (1, 3, 40), r"weights \(1, 3, 40\) do not fit .* give \(2, 3, 40\)"),
        ((2, 40, 8), (2, 1, 40), "weights .* do not fit"),
        ((2, 40, 8), (2, 3, 20), "weights .* do not fit"),
    ],
)
def test_what_a_kernel_would_read_past_is_refused(keys, weights, said, backend, interpreted):
    with pytest.raises(KernelError, match=said):
        choose_tokens(torch.randn(2, 3, 40, 8), torch.randn(keys), torch.randn(weights), 4, backend=backend)
