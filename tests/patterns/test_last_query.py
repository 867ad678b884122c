"""When decoding may forget a key: `last_query` against the definition, pair by pair."""

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
from longspan.patterns.base import MOST_SEARCHED, NEVER_ENDS
from longspan.patterns.without import Without

torch.set_num_threads(1)
small = st.integers(1, 9)
ATOMS = st.one_of(
    st.just(Full()),
    st.builds(Local, small, small),
    st.builds(lambda width, window, step: Local2D(-(-81 // width), width, window, step), st.integers(1, 20), small, small),
    st.builds(lambda width: Local2D(-(-81 // width), width, 3, 2, "shift"), st.integers(6, 12)),
    st.builds(Strided, small),
    st.builds(lambda summary, more: Fixed(summary + more, summary), small, st.integers(0, 6)),
    st.builds(lambda n: Global(first=n), st.integers(0, 9)),
    st.builds(lambda at: Global(positions=tuple(at)), st.sets(st.integers(0, 90), max_size=4)),
    st.builds(lambda w, at: Longformer(w, tuple(at)), small, st.sets(st.integers(0, 90), max_size=3)),
    st.builds(Random, st.integers(1, 4), small, st.integers(0, 5)),
    st.builds(BigBird, small, st.sampled_from([1, 3, 5]), st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)),
    st.builds(
        lambda seed: BlockTable(torch.rand(2, 80, 80, generator=torch.Generator().manual_seed(seed)) < 0.05, 4),
        st.integers(0, 99),
    ),
)
PATTERNS = st.one_of(
    ATOMS,
    st.builds(lambda a, b: a | b, ATOMS, ATOMS),
    st.builds(lambda a, b: a & b, ATOMS, ATOMS),
    st.builds(Without, ATOMS, ATOMS),
    st.builds(lambda a, b: PerHead([a, b]), ATOMS, ATOMS),
)


@settings(max_examples=150, deadline=None)
@given(PATTERNS, st.integers(1, 80))
def test_the_last_query_is_that_of_the_mask(pattern, stop):
    mask = pattern.mask(stop, heads=2, causal=True)  # (2, T, T)
    rows = torch.arange(stop)[:, None]
    for head in range(2):
        expected = torch.where(mask[head], rows, -1).amax(0)
        own = pattern.at_head(head, 2)
        assert own.last_query(torch.arange(stop), stop, head).tolist() == expected.tolist()


def test_a_predicate_is_searched_and_beyond_that_kept():
    pattern = Predicate(lambda b, h, i, j: i - j < 5) & Local(20)
    assert pattern.last_query(torch.arange(4), 100).tolist() == [4, 5, 6, 7]
    assert pattern.last_query(torch.arange(4), MOST_SEARCHED + 1).tolist() == [19, 20, 21, 22]


@pytest.mark.parametrize(
    ("pattern", "last"),
    [
        (Local(9, 2), 107),
        (Fixed(16, 2), 95),
        (Longformer(4, (3, 500)), 500),
        (Global(first=4), -1),
        (BigBird(16, 3, 0, 2), 111),
    ],
)
def test_what_is_forgotten_of_a_sequence_without_end(pattern, last):
    assert pattern.last_query(torch.tensor([91]), NEVER_ENDS).tolist() == [last]


@pytest.mark.parametrize("pattern", [Full(), Strided(7), Random(2, 16), BigBird(16)])
def test_what_is_kept_of_a_sequence_without_end(pattern):
    assert int(pattern.last_query(torch.tensor([91]), NEVER_ENDS)) > NEVER_ENDS - 10
