"""Causal Sinkhorn matching as one op, interpreted on the CPU, against its definition in float64: outputs and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.selected import match_blocks

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = {"iterations": 2, "temperature": 0.75, "noise": 1.0}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def given_tensors(batch=1, heads=2, kv_heads=1, blocks=3, size=16, width=16, dtype=torch.float32, noisy=True, seed=0):
    draw = torch.Generator().manual_seed(seed)
    # As a model gives them: heads after tokens in memory.
    q, k, v = (torch.randn(batch, blocks * size, h, width, generator=draw).transpose(1, 2) for h in (heads, kv_heads, kv_heads))
    drawn = torch.empty(batch, heads, blocks, blocks).exponential_(generator=draw) if noisy else None
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in (q, k, v)]
    return leaves, None if drawn is None else drawn.to(DEVICE)


def step(leaves, drawn, backend, size, **change):
    outs = match_blocks(*leaves, drawn, block_size=size, backend=backend, **SETTINGS | change)
    weights = [torch.linspace(-1, 2, x.shape[-1], device=x.device) * (1 + n) for n, x in enumerate(outs)]
    return *outs, *torch.autograd.grad(sum((x.double() * w).sum() for x, w in zip(outs, weights, strict=True)), leaves)


def exactly(leaves, drawn, size, **change):
    exact = [x.detach().double().requires_grad_() for x in leaves]
    return step(exact, None if drawn is None else drawn.double(), "blocked", size, **change)


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)]),
    blocks=st.sampled_from([1, 2, 3, 5, 34]),
    size=st.sampled_from([16, 48]),
    width=st.sampled_from([16, 20, 64]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    noisy=st.booleans(),
    iterations=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_the_kernels_are_the_definition(batch, heads, blocks, size, width, dtype, noisy, iterations, seed):
    leaves, drawn = given_tensors(batch, *heads, blocks, size, width, dtype, noisy, seed)
    found, wanted = (
        step(leaves, drawn, "triton", size, iterations=iterations),
        exactly(leaves, drawn, size, iterations=iterations),
    )
    assert [x.dtype for x in found] == [dtype] * 5
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for a, b in zip(found, wanted, strict=True):
        assert a.isfinite().all()
        assert float((a.double() - b).detach().norm() / (b.detach().norm() + 1e-3)) < tolerance


def test_the_first_block_gets_nothing_and_later_tokens_change_nothing():
    (q, k, v), _ = given_tensors(noisy=False)
    later = [torch.cat((x[:, :, :17], 3 * x[:, :, 17:]), 2) for x in (q, k, v)]
    for backend in ("triton", "blocked"):
        before, after = (match_blocks(*x, None, block_size=16, backend=backend, **SETTINGS) for x in ((q, k, v), later))
        for a, b in zip(before, after, strict=True):
            assert not a[:, :, :16].any() and a[:, :, 16:].any()
            assert a[:, :, :32].equal(b[:, :, :32])


def test_one_gradient_alone():
    leaves, drawn = given_tensors()
    for n in range(2):
        found, wanted = [], []
        for backend, into in (("triton", found), ("blocked", wanted)):
            out = match_blocks(*leaves, drawn, block_size=16, backend=backend, **SETTINGS)[n]
            into += torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_same_bits_twice():
    leaves, drawn = given_tensors()
    assert all(a.equal(b) for a, b in zip(*(step(leaves, drawn, "triton", 16) for _ in range(2)), strict=True))


def test_autocast_leaves_features_and_scores_in_float32():
    leaves, drawn = given_tensors()
    expected = step(leaves, drawn, "triton", 16)
    with torch.autocast(DEVICE, torch.bfloat16):
        plain = match_blocks(*leaves, drawn, block_size=16, backend="blocked", **SETTINGS)
        found = step(leaves, drawn, "triton", 16)
    for a, b in (*zip(found, expected, strict=True), *zip(plain, expected[:2], strict=True)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_gradients_of_gradients_are_refused():
    leaves, drawn = given_tensors()
    out, _ = match_blocks(*leaves, drawn, block_size=16, backend="triton", **SETTINGS)
    with pytest.raises(BackendError, match="blocked"):
        torch.autograd.grad(out.sum(), leaves, create_graph=True)


@pytest.mark.parametrize("backend", ["triton", "blocked"])
def test_wrong_calls_are_named(backend):
    (q, k, v), drawn = given_tensors()
    settings = {"block_size": 16, "backend": backend, **SETTINGS}
    with pytest.raises(KernelError, match="block_size = 32 does not divide 48 tokens"):
        match_blocks(q, k, v, None, **{**settings, "block_size": 32})
    with pytest.raises(KernelError, match="key/value heads that divide 3"):
        match_blocks(q[:, :1].repeat(1, 3, 1, 1), k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1), None, **settings)
    with pytest.raises(KernelError, match=r"drawn \(1, 2, 2, 3\) is not"):
        match_blocks(q, k, v, drawn[:, :, :2], **settings)
    with pytest.raises(KernelError, match="iterations = 0"):
        match_blocks(q, k, v, drawn, **{**settings, "iterations": 0})


def test_drawn_variables_have_any_strides():
    leaves, drawn = given_tensors()
    given = drawn.mT.contiguous().mT
    found, expected = (match_blocks(*leaves, x, block_size=16, backend="triton", **SETTINGS) for x in (given, drawn))
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


def test_transforms_go_to_plain_torch():
    (q, k, v), drawn = given_tensors()

    def total(q):
        return match_blocks(q, k, v, drawn, block_size=16, **SETTINGS)[0].square().sum()

    torch.testing.assert_close(torch.func.grad(total)(q), torch.autograd.grad(total(q), q)[0], atol=1e-4, rtol=1e-3)
    factors = torch.tensor([1.0, 2.0], device=DEVICE)
    expected = torch.stack([total(q * x) for x in factors])
    torch.testing.assert_close(torch.func.vmap(lambda x: total(q * x))(factors), expected, atol=1e-4, rtol=1e-4)


def test_operations_are_counted_as_those_of_plain_torch():
    leaves, drawn = given_tensors(heads=4, kv_heads=2)
    counts = []
    for backend in ("triton", "blocked"):
        with FlopCounterMode(display=False) as counter:
            step(leaves, drawn, backend, 16)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("noisy", [True, False])
def test_op_declares_its_shapes_and_compiles_whole(noisy):
    leaves, drawn = given_tensors(kv_heads=2, noisy=noisy)
    torch.library.opcheck(
        torch.ops.longspan.match_blocks,
        (*leaves, drawn, 16, 2, 0.3, 1.0),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    compiled = torch.compile(match_blocks, fullgraph=True, backend="aot_eager")
    call = {"block_size": 16, "backend": "triton", **SETTINGS}
    torch.testing.assert_close(compiled(*leaves, drawn, **call), match_blocks(*leaves, drawn, **call))


@pytest.mark.parametrize("backend", ["triton", "blocked"])
@pytest.mark.parametrize(("batch", "length"), [(0, 48), (2, 0), (2, 16)])
def test_nothing_to_match(batch, length, backend, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k, v = (torch.randn(batch, heads, length, 16, requires_grad=True) for heads in (4, 2, 2))
    found = match_blocks(q, k, v, None, block_size=16, iterations=2, temperature=1.0, noise=0.0, backend=backend)
    assert all(x.shape == q.shape and not x.any() for x in found)  # the first block has none before it
    for x, grad in zip((q, k, v), torch.autograd.grad(sum(x.sum() for x in found), (q, k, v)), strict=True):
        assert grad.shape == x.shape and not grad.any()
