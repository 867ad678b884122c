"""Forward-mode AD, transforms of torch.func, gradients of gradients, and tensors without data."""

import pytest
import torch
from interpreted import BACKENDS_HERE, interpreting

from longspan.functional import sparse_attention
from longspan.patterns import BigBird, BlockTable, Local, Strided
from longspan_kernels.block_sparse import DeviceLayout
from longspan_kernels.errors import BackendError

PATTERN = Local(5) | Strided(7)
FAST = [b for b in BACKENDS_HERE if b != "dense"]


def tensors(length=24, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, length, 16, generator=g).to(dtype) for _ in range(3)]


def attention(backend, pattern=PATTERN, **call):
    call = {"causal": True, "lengths": torch.tensor([24, 11]), **call}
    return lambda q, k, v: sparse_attention(q, k, v, pattern, backend=backend, **call)


def jvp(f, q, k, v):
    return torch.func.jvp(f, (q, k, v), (q.cos(), k.sin(), v.sin()))[1]


def forward_ad(f, q, k, v):
    import torch.autograd.forward_ad as fwd

    with fwd.dual_level():
        return fwd.unpack_dual(f(*(fwd.make_dual(x, x.sin()) for x in (q, k, v)))).tangent


TRANSFORMS = {
    "jvp": jvp,
    "forward_ad": forward_ad,
    "jacfwd": lambda f, q, k, v: torch.func.jacfwd(lambda s: f(q * s, k, v))(torch.ones((), dtype=q.dtype)),
    "grad": lambda f, q, k, v: torch.func.grad(lambda q: f(q, k, v).square().sum())(q),
    "vjp": lambda f, q, k, v: torch.func.vjp(f, q, k, v)[1](v)[1],
    "vmap": lambda f, q, k, v: torch.func.vmap(lambda s: f(q * s, k, v))(torch.arange(3, dtype=q.dtype)),
    "vmap of grad": lambda f, q, k, v: torch.func.vmap(torch.func.grad(lambda s: f(q * s, k, v).square().sum()))(
        torch.arange(1, 4, dtype=q.dtype)
    ),
    "grad of grad": lambda f, q, k, v: torch.func.grad(torch.func.grad(lambda s: f(q * s, k, v).square().sum()))(
        torch.ones((), dtype=q.dtype)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_auto_serves_transforms_and_the_rest_say_what_does(name):
    transform, (q, k, v) = TRANSFORMS[name], tensors()
    right = transform(attention("dense"), q, k, v)
    assert right.abs().max() > 1e-3
    torch.testing.assert_close(transform(attention("auto"), q, k, v), right)
    for backend in FAST:
        with interpreting(backend), pytest.raises(BackendError, match=r'has no rule for .*; use backend="dense"'):
            transform(attention(backend), *(x.float() for x in (q, k, v)))


def test_a_tangent_is_the_limit_of_differences():
    q, k, v = tensors()
    f, step = attention("auto"), 1e-6
    ahead, behind = (f(q + s * q.cos(), k + s * k.sin(), v + s * v.sin()) for s in (step, -step))
    torch.testing.assert_close(jvp(f, q, k, v), (ahead - behind) / (2 * step), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("backend", FAST)
def test_gradients_of_gradients(backend):
    results = []
    dtype = torch.float32 if backend == "triton" else torch.float64
    for chosen in ("dense", backend):
        q, k, v = (x.requires_grad_() for x in tensors(dtype=dtype))
        with interpreting(backend):
            torch.manual_seed(3)
            out, lse = attention(chosen, return_lse=True, dropout_p=0.2)(q, k, v)
            total = (out * out.detach().cos()).sum() + lse.masked_fill(lse.isinf(), 0.0).sum()
            first = torch.autograd.grad(total, (q, k, v), create_graph=True)
            second = torch.autograd.grad(sum(x.square().sum() for x in first), (q, k, v))
        results.append((*first, *second))
    for right, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, right, atol=1e-4 if backend == "triton" else 1e-10, rtol=1e-4)


def test_gradients_of_gradients_of_a_bias_alone():
    q, k, v = tensors()
    bias = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    f = lambda b: attention("blocked", BigBird(16, 1, 1, 1), block_bias=b)(q, k, v).square().sum()  # noqa: E731
    assert torch.autograd.gradgradcheck(f, (bias,))


LISTED = DeviceLayout(torch.tensor([[[[0, 1], [1, 0]]]]), torch.tensor([[[2, 1]]]), 16, 16, 24, 24)
TABLE = BlockTable(torch.tensor([[True, True], [False, True]]), 16)  # the same pairs


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_layout_made_at_run_time_is_served_as_a_pattern_is(name):
    transform, (q, k, v) = TRANSFORMS[name], tensors()
    right = transform(attention("dense", TABLE, causal=False), q, k, v)
    assert right.abs().max() > 1e-3
    for backend in ("auto", "dense"):
        torch.testing.assert_close(transform(attention(backend, LISTED, causal=False), q, k, v), right)
    with pytest.raises(BackendError, match=r'has no rule for .*; use backend="dense"'):
        transform(attention("blocked", LISTED, causal=False), q, k, v)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_gradients_of_gradients_through_a_layout_made_at_run_time(backend):
    results = []
    for chosen, pairs in (("dense", TABLE), (backend, LISTED)):
        q, k, v = (x.requires_grad_() for x in tensors(dtype=torch.float32))
        with interpreting(backend):
            out = attention(chosen, pairs, causal=False)(q, k, v)
            first = torch.autograd.grad(out.square().sum(), (q, k, v), create_graph=True)
            second = torch.autograd.grad(sum(x.square().sum() for x in first), (q, k, v))
        results.append((out, *first, *second))
    for right, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS_HERE])
def test_meta_tensors_give_shapes(backend):
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.empty(2, n, 40, 32, device="meta", dtype=dtype, requires_grad=True) for n in (4, 2, 2))
        out, lse = sparse_attention(
            q, k, v, BigBird(16), causal=True, backend=backend, return_lse=True, lengths=torch.tensor([3, 4]), dropout_p=0.1
        )
        assert out.device.type == "meta" and out.shape == q.shape and out.dtype == dtype
        assert lse.shape == q.shape[:3] and lse.dtype == torch.float32
        out.float().sum().backward()
        assert k.grad is not None and k.grad.shape == k.shape and k.grad.device.type == "meta"
