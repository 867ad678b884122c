"""Patterns that keep everything: cuDNN where the table says so, held to the reference like our own kernels."""

from __future__ import annotations

import pytest
import torch

from longspan import sparse_attention
from longspan.patterns import BlockTable, Full, Local
from longspan_kernels.block_sparse import cudnn

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or (torch.cuda.get_device_capability(), 128) not in cudnn.FASTER, reason="not in the table"
)


def inputs(length, heads=2, key_heads=None, width=128, dtype=torch.bfloat16, tokens_first=False, k_length=None):
    generator = torch.Generator("cuda").manual_seed(length)
    made = []
    key_heads, k_length = key_heads or heads, k_length or length
    for count, heads_here in ((length, heads), (k_length, key_heads), (k_length, key_heads), (length, heads)):
        shape = (2, count, heads_here, width) if tokens_first else (2, heads_here, count, width)
        x = torch.randn(shape, generator=generator, device="cuda").to(dtype)
        made.append(x.transpose(1, 2) if tokens_first else x)
    *leaves, gradient = made
    return [x.detach().requires_grad_() for x in leaves], gradient


def exact(leaves, causal, gradient):
    """Output and gradients of the definition, float64."""
    q, *both = (x.detach().double().requires_grad_() for x in leaves)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in both)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    out = scores.softmax(-1) @ v
    return [out, *torch.autograd.grad(out, (q, *both), gradient.double())]


def kernels_of(function):
    """The names of what runs on the device."""
    with torch.profiler.profile() as profile:
        function()
        torch.cuda.synchronize()
    return " ".join(e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [4096, 4103])
@pytest.mark.parametrize(("heads", "key_heads", "tokens_first"), [(2, 2, False), (4, 2, True), (4, 1, False)])
def test_outputs_and_gradients(dtype, causal, length, heads, key_heads, tokens_first):
    leaves, gradient = inputs(length, heads, key_heads, dtype=dtype, tokens_first=tokens_first)
    pattern = Full()
    found = {}
    for backend in ("auto", "triton"):
        out = sparse_attention(*leaves, pattern, causal=causal, backend=backend)
        found[backend] = [out, *torch.autograd.grad(out, leaves, gradient)]
    for name, auto, ours, reference in zip(
        ("out", "dq", "dk", "dv"), found["auto"], found["triton"], exact(leaves, causal, gradient), strict=True
    ):
        error, usual = ((x.double() - reference).abs().max().item() for x in (auto, ours))
        assert error <= 2 * usual + 1e-5, name


def test_which_kernels_run():
    leaves, gradient = inputs(4096)

    def step(**call):
        torch.autograd.grad(sparse_attention(*leaves, **call), leaves, gradient)

    assert "forward_rows" not in kernels_of(lambda: step(pattern=Full()))
    assert "backward_columns" not in kernels_of(lambda: step(pattern=Full(), causal=True))
    for call in (
        {"pattern": Full(), "backend": "triton"},
        {"pattern": Local(8192), "causal": False},
        {"pattern": BlockTable(torch.eye(32, dtype=torch.bool), 128)},
        {"pattern": Full(), "dropout_p": 0.1},
        {"pattern": Full(), "lengths": torch.tensor([4096, 100], device="cuda")},
        {"pattern": Full(), "segments": torch.zeros(2, 4096, dtype=torch.int32, device="cuda")},
    ):
        assert "forward_rows" in kernels_of(lambda call=call: step(**call)), call


def test_deterministic_algorithms_have_our_kernels():
    leaves, gradient = inputs(4100)
    ours = sparse_attention(*leaves, Full(), causal=True, backend="triton")
    ours = [ours, *torch.autograd.grad(ours, leaves, gradient)]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        out = sparse_attention(*leaves, Full(), causal=True)
        found = [out, *torch.autograd.grad(out, leaves, gradient)]
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(torch.equal(a, b) for a, b in zip(found, ours, strict=True))


def test_the_log_sum_exp_and_its_gradient():
    leaves, gradient = inputs(4111)
    found = {}
    for backend in ("auto", "triton"):
        out, lse = sparse_attention(*leaves, Full(), causal=True, return_lse=True, backend=backend)
        found[backend] = [lse, *torch.autograd.grad([out, lse], leaves, [gradient, torch.ones_like(lse)])]
    for auto, ours in zip(found["auto"], found["triton"], strict=True):
        torch.testing.assert_close(auto.float(), ours.float(), atol=3e-2, rtol=3e-2)


def test_unlike_lengths():
    leaves, gradient = inputs(4096, k_length=4608)
    out = sparse_attention(*leaves, Full())
    found = [out, *torch.autograd.grad(out, leaves, gradient)]
    for x, reference in zip(found, exact(leaves, False, gradient), strict=True):
        torch.testing.assert_close(x.double(), reference, atol=4e-2, rtol=4e-2)
    causal = sparse_attention(*leaves, Full(), causal=True)  # the last query sees all keys: cuDNN counts from the first
    torch.testing.assert_close(causal, sparse_attention(*leaves, Full(), causal=True, backend="triton"))


def test_compiled_and_differentiated_twice():
    leaves, gradient = inputs(4096)
    compiled = torch.compile(lambda q, k, v: sparse_attention(q, k, v, Full(), causal=True), fullgraph=True)
    eager = sparse_attention(*leaves, Full(), causal=True)
    out = compiled(*leaves)
    torch.testing.assert_close(out, eager, atol=1e-2, rtol=1e-2)
    torch.autograd.grad(out, leaves, gradient)
    (dq,) = torch.autograd.grad(eager, leaves[:1], gradient, create_graph=True)
    (second,) = torch.autograd.grad(dq.float().sum(), leaves[1:2])
    assert second.isfinite().all()


def test_in_a_cuda_graph():
    leaves, gradient = inputs(4096)

    def step():
        out = sparse_attention(*leaves, Full(), causal=True)
        return [out, *torch.autograd.grad(out, leaves, gradient)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            expected = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-2, rtol=1e-2)
