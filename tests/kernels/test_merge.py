"""Parts merged by their log-sum-exp, against attention over all pairs and against the definition in float64."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.selected import NOTHING, merge_by_lse

HERE = torch.cuda.is_available()
interpreted = pytest.mark.skipif(HERE, reason="a GPU is here: tests/gpu runs the compiled kernels")


def attended(q, k, v):
    scores = q @ k.mT
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize("cuts", [(3,), (2, 5), (1, 2, 4)])
def test_merged_parts_are_attention_over_all_of_them(cuts):
    q, k, v = (torch.randn(2, 3, n, 16, dtype=torch.float64, requires_grad=True) for n in (5, 9, 9))
    parts = [attended(q, k[:, :, a:b], v[:, :, a:b]) for a, b in pairwise((0, *cuts, 9))]
    out, wanted = merge_by_lse(parts), attended(q, k, v)[0]
    torch.testing.assert_close(out, wanted)
    weight = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, (q, k, v), weight), torch.autograd.grad(wanted, (q, k, v), weight), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("last_from", [1, 3, 9])
def test_the_last_part_counts_from_a_token_on(last_from):
    parts = [(x, s) for x, s in drawn(2, 7, 16, torch.float64, 0)]
    out = merge_by_lse(parts, last_from=last_from)
    first, both = merge_by_lse(parts[:1]), merge_by_lse(parts)
    assert out[:, :, :last_from].equal(first[:, :, :last_from]) and out[:, :, last_from:].equal(both[:, :, last_from:])


def drawn(count, length, width, dtype, seed):
    """Parts of which some queries have seen nothing, written as -inf and as NOTHING."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for n in range(count):
        lse = torch.randn(2, 2, length, generator=g) * 5
        lse[torch.rand(lse.shape, generator=g) < 0.3] = float("-inf") if n % 2 else NOTHING
        out = torch.randn(2, length, 2, width, generator=g).transpose(1, 2).to(dtype)
        parts.append((out.requires_grad_(), lse.requires_grad_()))
    return parts


def step(parts, backend, least, last_from):
    out = merge_by_lse(parts, least, backend, last_from=last_from)
    leaves = [x for part in parts for x in part]
    return out, *torch.autograd.grad((out.double() * torch.linspace(-1, 1, out.shape[-1])).sum(), leaves)


@interpreted
@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 3),
    st.integers(1, 70),
    st.sampled_from([16, 20, 64]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([NOTHING / 2, -2.0]),
    st.sampled_from([0, 1, 16, 80]),
    st.integers(0, 99),
)
def test_the_kernels_are_the_definition(count, length, width, dtype, least, last_from, seed):
    pytest.importorskip("triton")
    parts = drawn(count, length, width, dtype, seed)
    exact = [(a.detach().double().requires_grad_(), s.detach().double().requires_grad_()) for a, s in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        found = step(parts, "triton", least, last_from)
    assert all(x.isfinite().all() for x in found)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for a, b in zip(found, step(exact, "blocked", least, last_from), strict=True):
        assert float((a.double() - b).detach().norm() / (b.detach().norm() + 1)) < tolerance


@interpreted
def test_merging_compiles_whole_and_refuses_second_gradients(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    parts = drawn(2, 40, 16, torch.float32, 0)
    compiled = torch.compile(merge_by_lse, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(parts, backend="triton"), merge_by_lse(parts, backend="triton"))
    flat = [x.detach() for part in parts for x in part]
    torch.library.opcheck(torch.ops.longspan.merge_by_lse, (*flat, None, None, NOTHING / 2))
    with pytest.raises(BackendError, match="gradients of gradients"):
        torch.autograd.grad(merge_by_lse(parts, backend="triton").sum(), parts[0][0], create_graph=True)


def test_parts_of_several_shapes_are_named():
    (a, lse_a), (b, lse_b) = drawn(2, 40, 16, torch.float32, 0)
    with pytest.raises(KernelError, match=r"part 1 is \(.*39, 16\) with a log-sum-exp"):
        merge_by_lse([(a, lse_a), (b[:, :, :39], lse_b[:, :, :39])])
    with pytest.raises(KernelError, match=r"part 0 is \(.*40, 16\) with a log-sum-exp \(.*39\)"):
        merge_by_lse([(a, lse_a[:, :, :39]), (b, lse_b)])
