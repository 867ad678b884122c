"""The gated delta rule in plain torch against the reference: outputs, states, every gradient, what it stores."""

import pytest
import torch
from drawn_linear import LinearCall, compare_with_reference, linear_calls
from hypothesis import given, settings

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.linear import delta_chunked, gated_delta_rule, linear_attention


@given(linear_calls(110, delta=True))
@settings(max_examples=12, deadline=None)
def test_chunks_give_what_tokens_give(call):
    compare_with_reference(call, "chunked", torch.float64, 1e-10)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types(dtype, backend):
    call = LinearCall(2, 2, 2, 130, 24, 40, 0.3, True, True, True, delta=True)
    compare_with_reference(call, backend, dtype, {torch.float32: 5e-6, torch.bfloat16: 6e-3}[dtype])


def test_many_pieces(monkeypatch):
    monkeypatch.setitem(delta_chunked.ELEMENTS_AT_ONCE, "cpu", 1)
    call = LinearCall(B=2, T=300, decay=0.2, state=True, segments=True, lengths=True, delta=True)
    compare_with_reference(call, "chunked", torch.float64, 1e-10)


def test_a_key_gives_back_its_last_value():
    keys = torch.eye(16, dtype=torch.float64)
    order = torch.randint(0, 16, (200,), generator=torch.Generator().manual_seed(0))
    v = torch.randn(1, 1, 200, 16, dtype=torch.float64)
    k = keys[order][None, None]
    out, state = gated_delta_rule(k, k, v, torch.ones(1, 1, 200, dtype=torch.float64), return_state=True)
    torch.testing.assert_close(out, v)
    for key in order.unique().tolist():
        last = int((order == key).nonzero()[-1])
        torch.testing.assert_close(state[0, 0, key], v[0, 0, last])


def test_a_sequence_in_two_calls():
    call = LinearCall(B=2, T=150, decay=0.2, delta=True).tensors()
    q, k, v, g, b = (call[name] for name in ("q", "k", "v", "log_decay", "beta"))
    whole, last = gated_delta_rule(q, k, v, b, g, return_state=True)
    parts, state = [], None
    for first, stop in ((0, 1), (1, 77), (77, 150)):
        here = slice(first, stop)
        part, state = gated_delta_rule(
            q[:, :, here], k[:, :, here], v[:, :, here], b[:, :, here], g[:, :, here], initial_state=state, return_state=True
        )
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    torch.testing.assert_close(state, last)


def test_compiles_whole():
    q, k, v = (torch.randn(1, 2, 70, 16, requires_grad=True) for _ in range(3))
    beta = torch.rand(1, 2, 70)
    compiled = torch.compile(gated_delta_rule, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(q, k, v, beta), gated_delta_rule(q, k, v, beta))


def test_wrong_beta_is_named():
    q = torch.zeros(1, 2, 8, 16)
    with pytest.raises(KernelError, match=r"beta has shape \[8\]; give \[1, 2, 8\]"):
        gated_delta_rule(q, q, q, torch.zeros(8))
    with pytest.raises(KernelError, match=r"beta is None; give a tensor \[B, H, T\]"):
        gated_delta_rule(q, q, q, None)
    with pytest.raises(KernelError, match="lengths is a list"):
        gated_delta_rule(q, q, q, torch.zeros(1, 2, 8), lengths=[8])


@pytest.mark.parametrize("delta", [True, False])
def test_transforms_have_the_rules_of_the_reference(delta):
    call = LinearCall(T=20, decay=0.3, delta=delta).tensors()
    q, k, v, g, b = (call[name] for name in ("q", "k", "v", "log_decay", "beta"))

    def run(q, backend="auto"):
        if delta:
            return gated_delta_rule(q, k, v, b, g, backend=backend)
        return linear_attention(q, k, v, log_decay=g, causal=True, backend=backend)

    leaf = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(run(leaf).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda q: run(q).sum())(q), expected)
    _, tangent = torch.func.jvp(run, (q,), (q,))
    torch.testing.assert_close(tangent, run(q))  # linear in q
    with pytest.raises(BackendError, match=r"backend='chunked' has no rule for .*; use backend=.reference"):
        torch.func.grad(lambda q: run(q, "chunked").sum())(q)
