"""Causal Sinkhorn balancing, interpreted on the CPU, against its definition in float64: outputs and gradients."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.selected import balance_causally

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=["a program a head", "launches an iteration"])
def both_ways(request, monkeypatch):
    """Few blocks as they are served, and as more of them are."""
    from longspan_kernels.selected.triton import balance

    monkeypatch.setattr(balance, "MOST_OF_A_HEAD", 256 if request.param == "a program a head" else 0)


def gradients(scores, blocks, iterations, backend, dout):
    scores = scores.detach().requires_grad_()
    out = balance_causally(scores, blocks, iterations, backend)
    return out, torch.autograd.grad((out * dout).sum(), scores)[0]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 34),
    iterations=st.integers(1, 3),
    batch=st.integers(1, 2),
    some=st.booleans(),
    spread=st.sampled_from([0.1, 2.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_output_and_gradient_are_the_definitions(both_ways, n, iterations, batch, some, spread, seed):
    draw = torch.Generator().manual_seed(seed)
    scores = (spread * torch.randn(batch, 2, n, n, generator=draw)).to(DEVICE)
    dout = torch.randn(scores.shape, generator=draw).to(DEVICE)
    blocks = torch.randint(0, n + 1, (batch,), generator=draw).to(DEVICE) if some else None
    out, grad = gradients(scores, blocks, iterations, "triton", dout)
    expected, wanted = gradients(scores.double(), blocks, iterations, "blocked", dout.double())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(grad.double(), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_many_blocks_in_several_tiles_of_columns(both_ways, spread):
    draw = torch.Generator().manual_seed(0)
    scores, dout = (torch.randn(1, 1, 131, 131, generator=draw).to(DEVICE) for _ in range(2))
    scores, blocks = scores * spread, torch.tensor([129], device=DEVICE)
    out, grad = gradients(scores, blocks, 2, "triton", dout)
    expected, wanted = gradients(scores.double(), blocks, 2, "blocked", dout.double())
    torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(grad.double(), wanted, atol=1e-4, rtol=1e-3)


def test_rows_do_not_follow_from_later_ones(both_ways):
    scores = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    later = scores.clone()
    later[:, :, 5:] += 3.0
    before, after = (balance_causally(x, None, 4, "triton")[:, :, :5] for x in (scores, later))
    assert before.equal(after) and float(before.sum()) > 0


def test_the_same_bits_twice(both_ways):
    scores = torch.randn(1, 1, 17, 17, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    first, second = (gradients(scores, None, 3, "triton", scores) for _ in range(2))
    assert first[0].equal(second[0]) and first[1].equal(second[1])


def test_gradients_of_gradients_are_refused():
    scores = torch.randn(1, 1, 8, 8).to(DEVICE).requires_grad_()
    out = balance_causally(scores, None, 2, "triton")
    with pytest.raises(BackendError, match="blocked"):
        torch.autograd.grad(out.sum(), scores, create_graph=True)


@pytest.mark.parametrize("backend", ["triton", "blocked"])
def test_wrong_calls_are_named(backend):
    for iterations in (0, -2):  # without one the kernels would go back through memory that is not theirs
        with pytest.raises(KernelError, match=f"iterations = {iterations} normalise nothing; give 1 or more"):
            balance_causally(torch.randn(1, 2, 5, 5), None, iterations, backend)
    with pytest.raises(KernelError, match=r"scores \(1, 2, 5, 6\) are not"):
        balance_causally(torch.randn(1, 2, 5, 6), None, 2, backend)


def test_op_declares_its_shapes():
    scores = torch.randn(1, 2, 8, 8).to(DEVICE).requires_grad_()
    torch.library.opcheck(
        torch.ops.longspan.balance,
        (scores, None, 3),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize("backend", ["triton", "blocked"])
@pytest.mark.parametrize(("batch", "size"), [(0, 3), (2, 0), (2, 1)])
def test_nothing_to_balance(batch, size, backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    scores = torch.randn(batch, 2, size, size, requires_grad=True)
    found = balance_causally(scores, None, 3, backend)
    assert found.shape == scores.shape and not found.any()
    assert not torch.autograd.grad(found.sum(), scores)[0].any()
