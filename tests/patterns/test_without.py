"""A pattern less another."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.patterns import BlockTable, Full, Local, PatternError, PerHead, Strided, Without


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(2, 9), st.booleans())
def test_what_is_kept_and_not_removed(length, window, stride, causal):
    pattern = Without(Local(window), Strided(stride))
    kept, removed = (p.mask(length, causal=causal) for p in (Local(window), Strided(stride)))
    assert pattern.mask(length, causal=causal).equal(kept & ~removed)
    assert pattern.live_pairs(length, causal=causal) == int((kept & ~removed).sum())


def test_heads_are_taken_apart():
    pattern = Without(PerHead([Full(), Local(5)]), Strided(3))
    assert pattern.head_count == 2
    assert pattern.mask(30)[1].equal(Without(Local(5), Strided(3)).mask(30)[0])
    assert pickle.loads(pickle.dumps(pattern)) == pattern


def test_wrong_parts_are_named():
    with pytest.raises(PatternError, match="removed = 3 is not a pattern"):
        Without(Full(), 3)
    with pytest.raises(PatternError, match="made for"):
        Without(PerHead([Full()] * 2), PerHead([Full()] * 3))
    with pytest.raises(PatternError, match="too small"):
        Without(Full(), BlockTable([[1]], 16)).mask(40)
