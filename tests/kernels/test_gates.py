"""Gates that queries set, against their definition: outputs, and the gradients of all that read the queries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.selected import query_gates

HERE = torch.cuda.is_available()
interpreted = pytest.mark.skipif(HERE, reason="a GPU is here: tests/gpu runs the compiled kernels")


def drawn(batch, heads, length, width, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, length, heads, width, generator=g, dtype=torch.float64).transpose(1, 2)
    weight, bias = (torch.randn(heads, n, 3, generator=g, dtype=torch.float64) * 0.3 for n in (width, 1))
    return [x.to(dtype).requires_grad_() for x in (q, weight, bias)]


def step(leaves, backend, readers):
    """Gates, and gradients of a loss of the gates and of as many readers of q."""
    gates, branches = query_gates(*leaves, backend)
    loss = (gates.double() * torch.arange(1, 4)).square().sum()
    for n, branch in enumerate(branches[:readers]):
        loss = loss + (branch.double() * (n + 1)).sin().sum()
    return gates, *torch.autograd.grad(loss, leaves)


@interpreted
@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 150),
    st.sampled_from([16, 20, 40, 64]),
    st.integers(0, 3),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 99),
)
def test_the_kernels_are_the_definition(batch, heads, length, width, readers, dtype, seed):
    pytest.importorskip("triton")
    leaves = drawn(batch, heads, length, width, dtype, seed)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    q, weight, bias = exact
    gates = torch.sigmoid(q @ weight + bias)
    loss = (gates * torch.arange(1, 4)).square().sum()
    for n in range(readers):
        loss = loss + (q * (n + 1)).sin().sum()
    wanted = (gates, *torch.autograd.grad(loss, exact))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr("longspan_kernels.selected.triton.gates.SUMMED", 64)
        found = step(leaves, "triton", readers)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for a, b in zip(found, wanted, strict=True):
        assert float((a.double() - b).norm() / (b.norm() + 1e-9)) < tolerance


def test_plain_torch_is_the_definition():
    leaves = drawn(2, 3, 50, 16, torch.float64, 0)
    q, weight, bias = leaves
    gates, branches = query_gates(*leaves)
    torch.testing.assert_close(gates, torch.sigmoid(q @ weight + bias))
    assert all(branch is q for branch in branches)


@interpreted
def test_gates_compile_whole_and_refuse_second_gradients(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    leaves = drawn(1, 2, 70, 16, torch.float32, 0)
    eager = step(leaves, "triton", 2)
    compiled = torch.compile(query_gates, fullgraph=True, backend="aot_eager")
    gates, branches = compiled(*leaves, "triton")
    loss = (gates.double() * torch.arange(1, 4)).square().sum()
    for n, branch in enumerate(branches[:2]):
        loss = loss + (branch.double() * (n + 1)).sin().sum()
    for a, b in zip((gates, *torch.autograd.grad(loss, leaves)), eager, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(BackendError, match="gradients of gradients"):
        torch.autograd.grad(query_gates(*leaves, "triton")[0].sum(), leaves, create_graph=True)
    q, weight, bias = (x.detach() for x in leaves)
    torch.library.opcheck(torch.ops.longspan.query_gates, (q, weight, bias))
    numbers = torch.rand(1, 2, 70, 3)
    torch.library.opcheck(torch.ops.longspan.query_gates_backward, (q, weight, numbers, numbers, q, None, q))


def test_shapes_that_do_not_fit_are_named():
    q = torch.randn(2, 2, 8, 16)
    with pytest.raises(KernelError, match=r"weight \(2, 32, 3\) does not fit .* give \(2, 16, 3\)"):
        query_gates(q, torch.randn(2, 32, 3), torch.zeros(2, 1, 3))
    with pytest.raises(KernelError, match=r"bias \(1, 1, 3\) does not fit"):
        query_gates(q, torch.randn(2, 16, 3), torch.zeros(1, 1, 3))
