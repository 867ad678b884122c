"""Linear attention's kernels, compiled, against the reference in float64: outputs, states, every gradient."""

import pytest
import torch
from drawn_linear import LinearCall

from longspan_kernels.errors import BackendError
from longspan_kernels.linear import gated_delta_rule, linear_attention, short_convolution

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    b = b.detach()
    return float((a.detach().double() - b).norm() / (b.norm() + 0.03 * b.numel() ** 0.5))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "call",
    [
        LinearCall(H=4, T=2000, D=64, Dv=64),
        LinearCall(H=4, T=2000, D=64, Dv=64, decay=0.1, state=True),
        LinearCall(B=2, H=2, shared=2, T=1003, D=64, Dv=128, decay=0.1, state=True, lengths=True, segments=True),
        LinearCall(H=2, T=700, D=256, Dv=256, decay=0.1),
        LinearCall(H=2, T=500, D=40, Dv=24, decay=0.5, segments=True),
        LinearCall(B=8, H=64, T=100, D=64, Dv=64, decay=0.1, state=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("delta", [False, True])
def test_every_gradient(call, dtype, delta):
    if delta:
        refuse_wide(call.D, call.Dv, dtype)
    compare(LinearCall(**{**vars(call), "delta": delta}), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", [(16, 16), (32, 64), (64, 32), (64, 128), (64, 256), (128, 64), (128, 128), (256, 256)])
def test_every_width_of_the_delta_rule(widths, dtype):
    """Compilers make wrong code of some widths: each has kernels of its own, or is refused."""
    D, Dv = widths
    refuse_wide(D, Dv, dtype)
    compare(LinearCall(H=2, shared=2, T=390, D=D, Dv=Dv, decay=0.1, state=True, lengths=True, delta=True), dtype)


def refuse_wide(D, Dv, dtype):
    if max(D, Dv) > 128 and dtype == torch.bfloat16 and torch.cuda.get_device_capability()[0] == 9:
        q, k = torch.zeros(2, 1, 1, 8, D, dtype=dtype, device="cuda")
        v, beta = torch.zeros(1, 1, 8, Dv, dtype=dtype, device="cuda"), torch.zeros(1, 1, 8, device="cuda")
        with pytest.raises(BackendError, match="128"):
            gated_delta_rule(q, k, v, beta, backend="triton")
        pytest.skip("refused")


def compare(call, dtype):
    given, leaves = {}, {}
    for name, x in call.tensors().items():
        if x is not None:
            x = x.cuda().to(dtype if name in "qkv" else torch.float32)
            given[name], leaves[name] = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    rest = {name: None if x is None else x.cuda() for name, x in call.places().items()}
    op = gated_delta_rule if call.delta else linear_attention
    out, state = op(**given, return_state=True, scale=0.1, backend="triton", **rest)
    # Plain torch by chunks, which tests on a CPU hold to the reference.
    expected, last = op(**leaves, return_state=True, scale=0.1, backend="chunked", **rest)
    dout, dstate = torch.randn_like(expected).to(dtype).double(), 0.1 * torch.randn_like(last)
    ours = torch.autograd.grad((out.double() * dout).sum() + (state.double() * dstate).sum(), list(given.values()))
    theirs = torch.autograd.grad((expected * dout).sum() + (last * dstate).sum(), list(leaves.values()))
    for name, a, b in zip(("out", "state", *given), (out, state, *ours), (expected, last, *theirs), strict=True):
        limit = TOLERANCE[dtype] * (5 if name in ("log_decay", "beta") else 1)
        assert off(a, b) < limit, f"{name} is off by {off(a, b):.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("width", "kernel", "packed"), [(64, 4, False), (64, 4, True), (40, 3, True), (128, 4, False), (256, 8, True)]
)
def test_short_convolutions(width, kernel, packed, dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 777, 3, width, generator=g).transpose(1, 2).to(dtype).double()
    weight = torch.randn(kernel, 3, 1, width, generator=g)
    segments = torch.randint(0, 50, (2, 777), generator=g).eq(0).cumsum(1) if packed else None
    results = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
        leaves = [
            x.to(device, kind).requires_grad_(),
            weight.to(device, torch.promote_types(kind, torch.float32)).requires_grad_(),
        ]
        out = short_convolution(*leaves, None if segments is None else segments.to(device))
        results.append([out, *torch.autograd.grad((out * torch.linspace(-1, 1, width, device=device)).sum(), leaves)])
    for a, b in zip(results[1], results[0], strict=True):
        difference = float((a.double().cpu() - b).detach().norm() / b.detach().norm())
        assert difference < (1e-5 if dtype == torch.float32 else 1e-2)
