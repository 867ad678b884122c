"""Compressed blocks against the modules that they are written from: outputs and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.selected import compress_blocks


def drawn(batch, heads, length, width, block, inner, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    shapes = ((block, width), (inner, block * width), (inner,), (width, inner), (width,))
    x = torch.randn(batch, length, heads, width, generator=g, dtype=torch.float64).transpose(1, 2)
    return [
        y.to(dtype).requires_grad_() for y in (x, *(torch.randn(s, generator=g, dtype=torch.float64) * 0.3 for s in shapes))
    ]


def defined(x, places, enter, enter_bias, leave, leave_bias, block, stride):
    blocks = x.unfold(2, block, stride).transpose(3, 4)
    inside = F.linear((blocks + places).flatten(3), enter, enter_bias)
    return blocks.mean(3) + F.linear(F.gelu(inside), leave, leave_bias)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 2), (8, 4), (8, 8), (6, 4)]),
    st.integers(0, 40),
    st.sampled_from([3, 16]),
    st.integers(0, 99),
)
def test_outputs_and_gradients_are_the_definition(batch, heads, sizes, more, width, seed):
    block, stride = sizes
    leaves = drawn(batch, heads, block + more, width, block, 5, torch.float64, seed)
    x, places, enter, enter_bias, leave, leave_bias = leaves
    out = compress_blocks(x, places, (enter, enter_bias), (leave, leave_bias), stride)
    wanted = defined(*leaves, block, stride)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(out, leaves, weight), torch.autograd.grad(wanted, leaves, weight), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_may_be_more_precise(dtype):
    leaves = drawn(1, 2, 40, 16, 8, 16, torch.float32, 0)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    x, places, enter, enter_bias, leave, leave_bias = leaves
    out = compress_blocks(x.to(dtype), places, (enter, enter_bias), (leave, leave_bias), 4)
    assert out.dtype == dtype
    wanted = defined(*exact, 8, 4)
    found = torch.autograd.grad(out.double().square().sum(), leaves)
    for a, b in zip((out, *found), (wanted, *torch.autograd.grad(wanted.square().sum(), exact)), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: tests/gpu runs the compiled kernels")
@pytest.mark.parametrize(
    ("batch", "heads", "block", "stride", "more", "width", "inner", "dtype", "precise"),
    [
        (1, 1, 1, 1, 96, 16, 5, torch.float32, True),
        (2, 3, 8, 4, 150, 64, 64, torch.bfloat16, True),
        (2, 3, 8, 4, 90, 64, 64, torch.bfloat16, False),
        (1, 2, 6, 4, 133, 20, 16, torch.float16, True),
        (1, 2, 5, 8, 133, 20, 16, torch.float32, True),
        (2, 1, 8, 8, 0, 16, 40, torch.float16, False),
    ],
)
def test_the_kernels_are_the_definition(monkeypatch, batch, heads, block, stride, more, width, inner, dtype, precise):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # several parts, splits and programs
    for name, value in (("MOST_PARTS", 2), ("SPLIT_ROWS", 32), ("MOST_SPLITS", 3)):
        monkeypatch.setattr(f"longspan_kernels.selected.triton.compress.{name}", value)
    leaves = drawn(batch, heads, block + more, width, block, inner, torch.float32 if precise else dtype, 0)
    x, places, enter, enter_bias, leave, leave_bias = leaves
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted = defined(*exact, block, stride)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def step():
        out = compress_blocks(x.to(dtype), places, (enter, enter_bias), (leave, leave_bias), stride, "triton")
        return out, *torch.autograd.grad(out, leaves, weight.to(dtype))

    found, again = step(), step()
    tolerance = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for a, b, c, leaf in zip(found, (wanted, *torch.autograd.grad(wanted, exact, weight)), again, (x, *leaves), strict=True):
        assert a.dtype == (dtype if a is found[0] else leaf.dtype) and torch.equal(a, c)
        assert float((a.double() - b).detach().norm() / b.detach().norm()) < tolerance


def test_autocast_leaves_the_products_alone():
    leaves = drawn(1, 2, 40, 16, 8, 16, torch.float32, 0)
    x, places, enter, enter_bias, leave, leave_bias = leaves
    found = []
    for cast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = compress_blocks(x, places, (enter, enter_bias), (leave, leave_bias), 4)
            found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_the_op_is_well_formed_and_refuses_second_gradients():
    leaves = drawn(1, 2, 20, 16, 8, 5, torch.float32, 0)
    torch.library.opcheck(torch.ops.longspan.compress_blocks, (*leaves, 4))
    x, places, enter, enter_bias, leave, leave_bias = leaves

    def compressed(x):
        return compress_blocks(x, places, (enter, enter_bias), (leave, leave_bias), 4)

    compiled = torch.compile(compressed, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, compressed(x))
    for a, b in zip(
        torch.autograd.grad(compiled.square().sum(), leaves),
        torch.autograd.grad(compressed(x).square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    with pytest.raises(BackendError, match="gradients of gradients"):
        torch.autograd.grad(compressed(x).sum(), leaves, create_graph=True)
    each = torch.func.vmap(compressed)(torch.stack([x.detach(), 2 * x.detach()]))
    torch.testing.assert_close(each[1], compressed(2 * x).detach())


def test_flops_are_those_of_its_products():
    leaves = drawn(2, 3, 40, 16, 8, 5, torch.float32, 0)
    x, places, enter, enter_bias, leave, leave_bias = leaves
    with FlopCounterMode(display=False) as ours:
        compress_blocks(x, places, (enter, enter_bias), (leave, leave_bias), 4).sum().backward()
    with FlopCounterMode(display=False) as theirs:
        defined(*leaves, 8, 4).sum().backward()
    assert ours.get_total_flops() == theirs.get_total_flops() > 0


@pytest.mark.parametrize("backend", ["triton", "blocked"])
@pytest.mark.parametrize("length", [0, 3, 7])
def test_a_sequence_shorter_than_a_block_has_none(length, backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, places, enter, enter_bias, leave, leave_bias = drawn(2, 3, length, 16, 8, 16, torch.float32, 0)
    out = compress_blocks(x, places, (enter, enter_bias), (leave, leave_bias), 4, backend)
    assert out.shape == (2, 3, 0, 16) and out.dtype == x.dtype
    assert not torch.autograd.grad(out.sum(), x)[0].any()


def test_gradients_of_gradients_by_the_definition():
    x, places, enter, enter_bias, leave, leave_bias = leaves = drawn(1, 1, 9, 3, 4, 5, torch.float64, 0)

    def compressed(x, *parameters):
        return compress_blocks(x, parameters[0], parameters[1:3], parameters[3:], 2, "dense")

    assert torch.autograd.gradgradcheck(compressed, leaves)
    wanted = compress_blocks(x, places, (enter, enter_bias), (leave, leave_bias), 2)
    torch.testing.assert_close(compressed(*leaves), wanted)


@pytest.mark.parametrize("backend", ["triton", "blocked"])
def test_wrong_calls_are_named(backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, places, enter, enter_bias, leave, leave_bias = drawn(1, 2, 40, 16, 8, 5, torch.float32, 0)
    with pytest.raises(KernelError, match=r"leave \(5, 16\) does not fit x \(1, 2, 40, 16\); give \(16, 5\)"):
        compress_blocks(x, places, (enter, enter_bias), (leave.mT, leave_bias), 4, backend)
    with pytest.raises(KernelError, match=r"enter \(5, 112\) .* give \(5, 128\)"):
        compress_blocks(x, places, (enter[:, :112], enter_bias), (leave, leave_bias), 4, backend)
    with pytest.raises(KernelError, match="stride = 0"):
        compress_blocks(x, places, (enter, enter_bias), (leave, leave_bias), 0, backend)
