"""The short convolution against its definition token by token: outputs and gradients, plain torch and interpreted Triton."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from longspan.attention.short_convolution import ShortConvolution
from longspan_kernels.errors import BackendError
from longspan_kernels.linear import short_convolution

HERE = torch.cuda.is_available()
interpreted = pytest.mark.skipif(HERE, reason="a GPU is here: tests/gpu runs the compiled kernels")


def drawn(batch, heads, length, width, kernel, packed, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, heads, width, generator=g, dtype=torch.float64).transpose(1, 2).to(dtype)
    weight = torch.randn(kernel, heads, 1, width, generator=g, dtype=torch.float64)
    segments = torch.randint(0, 2, (batch, length), generator=g).cumsum(1) if packed else None
    return x.requires_grad_(), weight.to(torch.promote_types(dtype, torch.float32)).requires_grad_(), segments


def defined(x, weight, segments):
    rows = []
    for t in range(x.shape[2]):
        total = x[:, :, t] * weight[0, :, 0]
        for i in range(1, min(weight.shape[0], t + 1)):
            same = torch.ones(x.shape[0], dtype=torch.bool) if segments is None else segments[:, t] == segments[:, t - i]
            total = total + x[:, :, t - i] * weight[i, :, 0] * same[:, None, None]
        rows.append(total)
    return F.silu(torch.stack(rows, 2))


def step(function, x, weight, *rest):
    out = function(x, weight, *rest)
    return out, *torch.autograd.grad((out.double() * torch.linspace(-1, 1, out.shape[-1])).sum(), (x, weight))


CALLS = (
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 90),
    st.sampled_from([16, 20, 48]),
    st.integers(2, 5),
    st.booleans(),
)


@settings(max_examples=20, deadline=None)
@given(*CALLS, st.integers(0, 99))
def test_plain_torch_is_the_definition(batch, heads, length, width, kernel, packed, seed):
    call = drawn(batch, heads, length, width, kernel, packed, torch.float64, seed)
    for a, b in zip(step(short_convolution, *call), step(defined, *call), strict=True):
        torch.testing.assert_close(a, b)


@interpreted
@settings(max_examples=10, deadline=None)
@given(*CALLS, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.integers(0, 99))
def test_the_kernels_are_the_definition(batch, heads, length, width, kernel, packed, dtype, seed):
    pytest.importorskip("triton")
    call = drawn(batch, heads, length, width, kernel, packed, dtype, seed)
    exact = [x.detach().double().requires_grad_() for x in call[:2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr("longspan_kernels.linear.triton.convolution.TILE", 512)
        patch.setattr("longspan_kernels.linear.triton.convolution.SUMMED", 32)
        found = step(short_convolution, *call, "triton")
    tolerance = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for a, b in zip(found, step(defined, *exact, call[2]), strict=True):
        assert float((a.double() - b).detach().norm() / (b.detach().norm() + 1e-6)) < tolerance


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 39])
@pytest.mark.parametrize("packed", [False, True])
def test_calls_go_on_where_others_stopped(cut, packed):
    module = ShortConvolution(2, 16, 4).double()
    torch.nn.init.normal_(module.weight)
    x = torch.randn(2, 2, 40, 16, dtype=torch.float64)
    segments = torch.tensor([[0] * 40, [0] * 40]) if packed else None
    whole, left = module(x, segments, None, None)
    first, kept = (
        module(x[:, :, :cut], None if segments is None else segments[:, :cut], None, None) if cut else (x[:, :, :0], None)
    )
    rest, last = module(x[:, :, cut:], None if segments is None else segments[:, cut:], kept, None)
    torch.testing.assert_close(torch.cat((first, rest), 2), whole)
    assert last.equal(left) and left.equal(x[:, :, -3:])
    lengths = torch.tensor([40, 2])
    _, cut_short = module(x.masked_fill((torch.arange(40) >= lengths[:, None])[:, None, :, None], 0.0), None, None, lengths)
    assert cut_short[0].equal(x[0, :, -3:]) and cut_short[1, :, 1:].equal(x[1, :, :2]) and not cut_short[1, :, 0].any()


@interpreted
def test_the_op_is_well_formed_and_refuses_second_gradients(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, weight, segments = drawn(1, 2, 70, 16, 4, True, torch.float32, 0)
    torch.library.opcheck(torch.ops.longspan.short_convolution, (x, weight, segments))
    compiled = torch.compile(short_convolution, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, segments, "triton"), short_convolution(x, weight, segments, "triton"))
    with pytest.raises(BackendError, match="gradients of gradients"):
        torch.autograd.grad(short_convolution(x, weight, None, "triton").sum(), x, create_graph=True)
