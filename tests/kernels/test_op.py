"""The custom op: autograd, fake tensors, compile, autocast, FLOPs, dropout, backends."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longspan.patterns import BigBird, Full, Local, Strided
from longspan_kernels.block_sparse import attend
from longspan_kernels.block_sparse.args import Options, Source, packed
from longspan_kernels.block_sparse.backends import choose_backend
from longspan_kernels.errors import BackendError

PATTERN = BigBird(16, 3, 1, 2, 0) | Local(5)


def inputs(length=70, heads=4, kv_heads=2, width=16, dtype=torch.float32, grad=True):
    g = torch.Generator().manual_seed(0)
    make = lambda n: torch.randn(2, n, length, width, generator=g).to(dtype).requires_grad_(grad)  # noqa: E731
    return make(heads), make(kv_heads), make(kv_heads)


@pytest.mark.parametrize("causal", [False, True])
def test_blocked_equals_dense(causal):
    q, k, v = inputs()
    results = []
    for backend in ("dense", "blocked", "auto"):
        out, lse = attend(q, k, v, PATTERN.key, causal=causal, return_lse=True, backend=backend)
        results.append((out, lse, *torch.autograd.grad((out * out.detach().cos()).sum() + lse.sum(), [q, k, v])))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("extra", ["plain", "dropout", "lengths", "segments", "bias"])
def test_opcheck(extra):
    q, k, v = inputs()
    lengths = torch.tensor([70, 31]) if extra == "lengths" else None
    segments = torch.arange(70).expand(2, 70) // 30 if extra == "segments" else None
    seed = torch.tensor([3]) if extra == "dropout" else None
    bias = torch.randn(4, 5, 5, requires_grad=True) if extra == "bias" else None
    p = 0.1 if extra == "dropout" else 0.0
    options = Options(0.25, lengths, lengths, segments, segments, p, seed, bias, 16 if extra == "bias" else 0)
    args = (q, k, v, *packed(options, Source(PATTERN.key, True), "blocked", False))
    torch.library.opcheck(torch.ops.longspan.block_sparse_forward.default, args)


def test_compiles_whole_and_once_for_all_lengths():
    compiled = 0

    def count(graph, example):
        nonlocal compiled
        compiled += 1
        return graph

    fn = torch.compile(lambda q, k, v: attend(q, k, v, PATTERN.key) * 2, fullgraph=True, backend=count, dynamic=True)
    for length in (70, 64, 51):
        q, k, v = inputs(length, grad=False)
        torch.testing.assert_close(fn(q, k, v), attend(q, k, v, PATTERN.key) * 2)
    assert compiled == 1


def test_autocast_casts_inputs_and_nothing_inside():
    q, k, v = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, PATTERN.key)
        assert torch.autograd.grad(out.float().sum(), q)[0].dtype == torch.float32
        out = attend(q, k, v, PATTERN.key)
    exact = attend(*(x.bfloat16().double() for x in (q, k, v)), PATTERN.key, backend="dense")
    assert out.dtype == torch.bfloat16
    # Rounded once, at the end: the products inside are float32.
    torch.testing.assert_close(out, exact.to(torch.bfloat16), atol=0, rtol=2**-7)


def test_flops_are_those_of_visited_pairs():
    q, k, v = inputs(128, kv_heads=4)
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v, Full().key).sum().backward()
    pairs = 2 * 4 * 128 * 128
    assert counter.get_total_flops() == 14 * 16 * pairs


def test_dropout_depends_on_the_generator_alone():
    q, k, v = inputs(grad=False)
    torch.manual_seed(1)
    first = attend(q, k, v, PATTERN.key, dropout_p=0.5)
    second = attend(q, k, v, PATTERN.key, dropout_p=0.5)
    torch.manual_seed(1)
    dense = attend(q, k, v, PATTERN.key, dropout_p=0.5, backend="dense")
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, dense, atol=1e-5, rtol=1e-4)


def test_dropout_drops_the_share_it_says():
    from longspan_kernels.block_sparse.reference import keep

    i, j = torch.arange(512)[:, None], torch.arange(512)[None]
    for head in range(4):
        kept = keep(torch.tensor([7]), torch.tensor(head), i, j, 0.3).double()
        assert abs(kept.mean() - 0.7) < 0.005
        # Neighbouring rows, columns and heads are independent.
        for other in (kept.roll(1, 0), kept.roll(1, 1), keep(torch.tensor([7]), torch.tensor(head + 1), i, j, 0.3).double()):
            assert abs(((kept - 0.7) * (other - 0.7)).mean()) < 0.003


def test_checkpointing_recomputes_the_same_dropout():
    from torch.utils.checkpoint import checkpoint

    q, k, v = inputs()
    grads = []
    for wrap in (False, True):
        torch.manual_seed(5)
        fn = lambda q: attend(q, k, v, PATTERN.key, dropout_p=0.4)  # noqa: E731
        out = checkpoint(fn, q, use_reentrant=False) if wrap else fn(q)
        grads.append(torch.autograd.grad(out.square().sum(), q)[0])
    torch.testing.assert_close(*grads, atol=0, rtol=0)


def test_a_query_without_keys_gives_zero_and_no_gradient():
    q, k, v = inputs(kv_heads=4)
    nothing = torch.zeros(2, dtype=torch.int64)
    out, lse = attend(q, k, v, Strided(3).key, q_lengths=nothing + 70, k_lengths=nothing, return_lse=True)
    assert torch.equal(out, torch.zeros_like(out)) and bool((lse == float("-inf")).all())
    for grad in torch.autograd.grad(out.sum() + lse.sum(), [q, k, v]):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_backends_refuse_what_they_cannot_serve():
    q, k, _ = inputs(grad=False)
    with pytest.raises(BackendError, match="unknown; choose one of auto, triton, blocked, dense, flash"):
        choose_backend("flesh", q, k)
    with pytest.raises(BackendError, match="float64 kernels"):
        choose_backend("triton", q.double(), k.double())
    with pytest.raises(BackendError, match="would hold"):
        long = torch.empty(1, 1, 1, 16).expand(1, 8, 65536, 16)
        choose_backend("dense", long, long)


@pytest.mark.parametrize("scale", [-0.25, 0.0, 0.5])
@pytest.mark.parametrize("pattern", [Full(), PATTERN])
def test_any_scale_is_served_alike(scale, pattern):
    q, k, v = inputs()
    results = []
    for backend in ("dense", "blocked", "auto"):
        out, lse = attend(q, k, v, pattern.key, causal=True, scale=scale, return_lse=True, backend=backend)
        results.append((out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), [q, k, v])))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["dense", "blocked", "auto"])
@pytest.mark.parametrize("length", [32, 150])
def test_any_strides_are_served_alike(backend, length):
    q, k, v = inputs(length, grad=False)
    ways = [
        lambda x: x,
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),  # the width first
        lambda x: x.repeat_interleave(2, -1)[..., ::2],
        lambda x: x.flip(2).flip(2)[:, :, :].transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.repeat_interleave(3, 2)[:, :, ::3],
    ]
    results = []
    for way in ways:
        leaves = [way(x).detach().requires_grad_() for x in (q, k, v)]
        out, lse = attend(*leaves, PATTERN.key, causal=True, return_lse=True, backend=backend)
        results.append((out, lse, *torch.autograd.grad((out, lse), leaves, (way(out.detach().cos()), lse.detach().sin()))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
