"""Gradients of attention to tokens on Triton, interpreted, some queries at a time: where each pick's goes, and their sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.launch.graphs import clear_caches
from longspan_kernels.selected import attend_to_tokens, selected_reference

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the compiled kernels")


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def drawn_picks(seed, batch, length, n):
    """Distinct tokens for each query, in no order, of past and future, -1 among them."""
    g = torch.Generator().manual_seed(seed)
    picks = torch.rand(batch, length, max(n, length), generator=g).argsort(-1)[..., :n]
    return torch.where((picks >= length) | (torch.rand(picks.shape, generator=g) < 0.2), -1, picks)


@pytest.mark.usefixtures("interpreted")
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    batch=st.integers(1, 3),
    length=st.integers(1, 150),
    n=st.integers(1, 20),
    words=st.integers(1, 3),
)
def test_picks_are_placed_as_a_stable_sort_places_them(seed, batch, length, n, words):
    from longspan_kernels.selected.triton.tokens import listing

    picks, chunk = drawn_picks(seed, batch, length, n).int(), 32 * words
    begin = seed % length
    rows = length - begin
    table, ends = listing(batch, length, n, begin, rows, chunk)(picks)
    for number, first in enumerate(range(begin, length, chunk)):
        here = picks[:, first : first + chunk]
        list_of = torch.where(here < 0, batch * length, here + torch.arange(batch)[:, None, None] * length).flatten()
        count = int((list_of < batch * length).sum())
        expected = torch.empty(list_of.shape, dtype=torch.int64)
        expected[list_of.argsort(stable=True)] = torch.arange(len(list_of))
        local = torch.arange(here.shape[1])[:, None].expand_as(here).flatten()
        entry = table[number * words + local // 32, list_of.clamp(max=batch * length - 1)]
        earlier = [bin(e & ((1 << at) - 1)).count("1") for e, at in zip(entry.tolist(), (local % 32).tolist(), strict=True)]
        place = (entry >> 32) + torch.tensor(earlier)
        some = list_of < batch * length
        assert place[some].equal(expected[some]) and ends[number, -1] == count


@pytest.mark.usefixtures("interpreted")
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    shape=st.sampled_from([(1, 1), (1, 2), (2, 1)]),
    group=st.sampled_from([1, 3]),
    length=st.integers(1, 36),
    width=st.sampled_from([16, 24]),
    n=st.integers(1, 40),
    few_at_once=st.booleans(),
    few_lists=st.booleans(),
)
def test_gradients_are_the_definitions(seed, shape, group, length, width, n, few_at_once, few_lists):
    from longspan_kernels.selected.triton import configs

    g, (batch, kv_heads) = torch.Generator().manual_seed(seed), shape
    heads = (kv_heads * group, kv_heads, kv_heads, kv_heads * group)
    q, k, v, dout = (torch.randn(batch, h, length, width, generator=g) for h in heads)
    picks = drawn_picks(seed, batch, length, n)
    leaves, exact = ([x.to(kind, copy=True).requires_grad_() for x in (q, k, v)] for kind in (torch.float32, torch.float64))
    expected, _ = selected_reference(*exact, picks[:, None].expand(-1, kv_heads, -1, -1), 1)
    theirs = torch.autograd.grad(expected, exact, dout.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "TOKEN_BYTES", 1 if few_at_once else configs.TOKEN_BYTES)  # 32 queries at a time
        patch.setattr(configs, "TOKEN_LIST_BYTES", 1 if few_lists else configs.TOKEN_LIST_BYTES)
        clear_caches()
        out = attend_to_tokens(*leaves, picks, backend="triton")
        mine = torch.autograd.grad(out, leaves, dout)
        clear_caches()
    for a, b in zip((out, *mine), (expected, *theirs), strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=2e-5)
