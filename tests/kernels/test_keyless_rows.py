"""Gradients that arrive at queries without keys, or at rows beyond a length, NaN and infinity too, give exactly 0."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import BACKENDS_HERE, interpreting

from longspan.functional import sparse_attention
from longspan.patterns import BigBird, Fixed, Full, Global, Local, PerHead, Predicate, Strided
from longspan_kernels.block_sparse import DeviceLayout

PATTERNS = [
    Local(7),
    Full(),
    Strided(5) | Local(4),
    Global(first=2),
    Fixed(8, 2),
    BigBird(16, 1, 1, 2),
    Global(positions=(30,)),
    PerHead([Local(3), Strided(6)]),
    Predicate(lambda b, h, i, j: (i % 3 != 0) & (j <= i)),
    Local(9) & Strided(4),
]
WRONG = [float("nan"), float("inf"), -float("inf")]


@st.composite
def limits(draw, batch: int, q_len: int, k_len: int) -> dict:
    """Lengths and segments that leave some queries without keys, and some rows beyond the end."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    found: dict = {}
    if draw(st.booleans()):
        found["lengths"] = tuple(torch.randint(-2, n + 3, (batch,), generator=g) for n in (q_len, k_len))
    if draw(st.booleans()) or not found:
        found["segments"] = tuple(torch.randint(0, 4, (batch, n), generator=g) for n in (q_len, k_len))
    return found


def gradients(pattern, tensors, call, backend, grad_out, grad_lse):
    leaves = [x.clone().requires_grad_() for x in tensors]
    q, k, v, *bias = leaves
    more = {"block_bias": bias[0]} if bias else {}
    out, lse = sparse_attention(q, k, v, pattern, return_lse=True, backend=backend, **more, **call)
    return out, lse, torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse))


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@settings(max_examples=8, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(1, 40), st.integers(0, 9), st.booleans(), st.sampled_from(WRONG), st.data())
def test_what_comes_to_a_keyless_row_goes_no_further(backend, pattern, q_len, more, causal, wrong, data):
    g = torch.Generator().manual_seed(q_len)
    k_len = q_len + more
    make = lambda n: torch.randn(2, 2, n, 16, generator=g)  # noqa: E731
    q, k, v = make(q_len), make(k_len), make(k_len)
    call = {"causal": causal, **data.draw(limits(2, q_len, k_len))}
    grad_out, grad_lse = make(q_len), torch.randn(2, 2, q_len, generator=g)
    with interpreting(backend):
        _, lse, expected = gradients(pattern, (q, k, v), call, "dense", grad_out, grad_lse)
        keyless = lse == float("-inf")
        grad_out[keyless], grad_lse[keyless] = wrong, wrong
        out, own_lse, got = gradients(pattern, (q, k, v), call, backend, grad_out, grad_lse)
    assert torch.equal(own_lse == float("-inf"), keyless) and not out[keyless].any() and not got[0][keyless].any()
    for ours, right in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, right, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_a_bias_that_closes_every_block_of_a_row(backend):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 48, 16, generator=g) for _ in range(3))
    bias = torch.randn(2, 3, 3, generator=g)
    bias[1, 1] = float("-inf")
    grad_out = torch.randn(1, 2, 48, 16, generator=g)
    grad_out[:, 1, 16:32] = float("nan")
    with interpreting(backend):
        _, lse, got = gradients(BigBird(16, 1, 1, 1), (q, k, v, bias), {}, backend, grad_out, torch.zeros(1, 2, 48))
    assert torch.equal(lse == float("-inf"), grad_out.isnan().any(-1))
    assert all(bool(x.isfinite().all()) for x in got) and not got[3][1, 1].any()


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@settings(max_examples=6, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(2, 40), st.sampled_from(WRONG), st.integers(0, 1 << 20))
def test_what_lies_beyond_a_length_is_not_read(backend, pattern, length, wrong, seed):
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(2, 2, length, 16, generator=g) for _ in range(3)]
    lengths = torch.randint(0, length, (2,), generator=g)
    beyond = torch.arange(length) >= lengths[:, None]
    grad_out, grad_lse = torch.randn(2, 2, length, 16, generator=g), torch.randn(2, 2, length, generator=g)
    results = []
    with interpreting(backend):
        for value in (0.0, wrong):
            dirty = [x.masked_fill(beyond[:, None, :, None], value) for x in (*tensors, grad_out)]
            grads = gradients(
                pattern,
                dirty[:3],
                {"lengths": lengths},
                backend,
                dirty[3],
                grad_lse.masked_fill(beyond[:, None], value),
            )
            results.append((*grads[:2], *grads[2]))
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other)
    for x in results[0][2:]:
        assert not x.masked_select(beyond[:, None, :, None]).any()


@pytest.mark.parametrize("backend", [b for b in BACKENDS_HERE if b != "dense"])
def test_a_layout_made_at_run_time(backend):
    g = torch.Generator().manual_seed(1)
    index, count = torch.tensor([[[[0, 2], [1, 0], [2, 1]]]]), torch.tensor([[[2, 0, 1]]])
    layout = DeviceLayout(index, count, 16, 16, 40, 40)
    tensors = [torch.randn(2, 2, 40, 16, generator=g) for _ in range(3)]
    grad_out = torch.randn(2, 2, 40, 16, generator=g)
    call = {"lengths": torch.tensor([40, 21])}
    with interpreting(backend):
        _, lse, expected = gradients(layout, tensors, call, backend, grad_out, torch.zeros(2, 2, 40))
        keyless = lse == float("-inf")
        assert keyless[0, :, 16:32].all() and keyless[1, :, 21:].all()
        grad_out[keyless] = float("nan")
        _, _, got = gradients(
            layout, tensors, call, backend, grad_out, torch.zeros(2, 2, 40).masked_fill(keyless, float("nan"))
        )
    for ours, right in zip(got, expected, strict=True):
        assert torch.equal(ours, right)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize("pair", [False, True])
def test_lengths_out_of_range_are_brought_into_it(backend, pair):
    g = torch.Generator().manual_seed(2)
    q, k, v, grad = (torch.randn(7, 1, 20, 16, generator=g) for _ in range(4))
    wide = torch.tensor([-3, -(2**40), 2**40, 21, 0, 20, 2**32 + 5])
    held = wide.clamp(0, 20)
    with interpreting(backend):
        ours, theirs = (
            gradients(Local(8), (q, k, v), {"lengths": (held, x) if pair else x}, backend, grad, torch.ones(7, 1, 20))
            for x in (wide, held)
        )
    for a, b in zip((*ours[:2], *ours[2]), (*theirs[:2], *theirs[2]), strict=True):
        assert torch.equal(a, b)
    assert not ours[0][:2].any() and bool((ours[1][:2] == float("-inf")).all())
