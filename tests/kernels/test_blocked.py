"""The plain-torch backend against the dense reference in float64: output, log-sum-exp and every gradient."""

import pytest
import torch
from drawn_rules import HEADS, Call, calls
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.block_sparse import blocked
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.blocked_passes import blocked_backward, blocked_forward
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.reference import reference_attention


def compare(call: Call, tiling: Tiling) -> None:
    layout = compile_layout(call.groups, call.q.shape[2], call.k.shape[2], HEADS, tiling)
    bias = call.extras.get("bias")
    leaves = [x.clone().requires_grad_() for x in (call.q, call.k, call.v, *([] if bias is None else [bias]))]
    extras = dict(call.extras) if bias is None else {**call.extras, "bias": leaves[3]}
    out, lse = reference_attention(*leaves[:3], call.mask, **extras)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    total = (out * dout).sum() + (lse.masked_fill(lse.isinf(), 0.0) * dlse).sum()
    expected = torch.autograd.grad(total, leaves)
    options = Options(**call.extras)
    got_out, got_lse = blocked_forward(call.q, call.k, call.v, layout, options)
    torch.testing.assert_close(got_out, out.detach(), atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(got_lse, lse.detach(), atol=1e-10, rtol=1e-9)
    got = blocked_backward(dout, dlse, call.q, call.k, call.v, got_out, got_lse, layout, options)
    for name, a, b in zip(("dq", "dk", "dv", "dbias"), [g for g in got if g is not None], expected, strict=False):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
    assert (got[3] is None) == (bias is None)


@pytest.fixture(params=[(1 << 20, 1 << 14, 1 << 19), (1 << 9, 32, 1)], ids=["whole", "cut"])
def cutting(request, monkeypatch):
    """Once with everything in one piece, once cut so small that rows, heads and batches are all split."""
    for name, value in zip(("SCORES_AT_ONCE", "COLUMNS_AT_ONCE", "TOKENS_AT_ONCE"), request.param, strict=True):
        monkeypatch.setattr(blocked, name, value)


shared = settings(max_examples=80, deadline=None)


def test_against_the_reference(cutting):
    @shared
    @given(calls(), st.sampled_from([(16, 16), (16, 32), (32, 16)]))
    def run(call, blocks):
        compare(call, Tiling(*blocks, overhead=0))

    run()


def test_block_bias_against_the_reference(cutting):
    @shared
    @given(calls(bias=True), st.sampled_from([16, 32]))
    def run(call, block):
        compare(call, Tiling(block, block, one_pass=True))

    run()


@settings(max_examples=20, deadline=None)
@given(calls(dtype=torch.float32))
def test_half_precision_computes_in_float32(call):
    layout = compile_layout(call.groups, call.q.shape[2], call.k.shape[2], HEADS, Tiling(16, 16))
    for dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x.to(dtype) for x in (call.q, call.k, call.v))
        out, lse = blocked_forward(q, k, v, layout, Options(**call.extras))
        exact, exact_lse = reference_attention(q.double(), k.double(), v.double(), call.mask, **call.extras)
        assert out.dtype == dtype and lse.dtype == torch.float32
        torch.testing.assert_close(lse.double(), exact_lse, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.double(), exact, atol=2e-2, rtol=2e-2)


def test_what_lies_beyond_a_length_is_never_read():
    from longspan.patterns import Local
    from longspan_kernels.block_sparse import attend

    q, k, v = (torch.randn(2, 2, 70, 16, dtype=torch.float64) for _ in range(3))
    lengths = torch.tensor([70, 20])
    results = []
    for poison in (0.0, float("nan")):
        for x in (q, k, v):
            x[1, :, 20:] = poison
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, Local(9).key, q_lengths=lengths, k_lengths=lengths)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)
