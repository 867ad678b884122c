"""Learned gates and adaptive spans through the Triton kernels, against the plain-torch backend in float64."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import longspan.attention as variants

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
PLACE = {"heads": 4, "kv_heads": 2, "head_dim": 64, "max_length": 700}
GATES = {"density": 0.2, "block_size": 64, "strides": [16], "stride_from": 2, "open_until": 0.0}


def pair(kind, causal):
    """The same module on the GPU and, in float64, on the CPU; gates and spans of every kind."""
    settings = GATES if kind == "learned" else {}
    own, exact = (getattr(variants, kind)(**PLACE, **settings, causal=causal, backend=b) for b in ("triton", "blocked"))
    generator = torch.Generator().manual_seed(0)
    parameter = own.log_alpha if kind == "learned" else own.share
    values = torch.rand(parameter.shape, generator=generator)
    parameter.data.copy_(values * 8 - 4 if kind == "learned" else values)
    exact = exact.double()
    exact.load_state_dict(own.state_dict())
    own = own.cuda()
    for module in (own, exact):
        module.train().begin_step(5, 10)
    return own, exact


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["learned", "adaptive_span"])
def test_outputs_and_gradients(kind, causal):
    own, exact = pair(kind, causal)
    drawn = [torch.randn(2, heads, 650, 64, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 3)]
    q, k, v = drawn[0], drawn[1], drawn[2][:, :2]
    here = [x.to("cuda", torch.bfloat16).requires_grad_() for x in (q, k, v)]
    there = [x.to(torch.bfloat16).double().requires_grad_() for x in (q, k, v)]
    out, expected = own(*here), exact(*there)
    assert (out.cpu().double() - expected).norm() < 0.01 * expected.norm()
    grads = torch.autograd.grad(out.float().square().sum(), (*here, *own.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), (*there, *exact.parameters()))
    for a, b in zip(grads, wanted, strict=True):
        assert (a.cpu().double() - b).norm() < 0.1 * b.norm()


def test_closed_gates_are_not_computed():
    """What the kernels compute, as torch's FLOP counter sees it, shrinks with the gates."""
    module = variants.learned(density=0.1, block_size=64, heads=4, head_dim=64, causal=True, max_length=8192).cuda()
    q, k, v = (torch.randn(1, 4, 8192, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            module(q, k, v).sum().backward()
        return counter.get_total_flops()

    gated = flops()
    module.log_alpha.data.normal_(generator=torch.Generator("cuda").manual_seed(0))
    module.harden()
    assert 0 < flops() < 0.7 * gated
