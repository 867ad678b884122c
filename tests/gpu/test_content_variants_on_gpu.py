"""Variants that choose by content on a GPU: as in float64 on the CPU, and nothing in them waits for the device."""

import copy

import pytest
import torch

import longspan.attention as variants
from longspan.attention.hashing import buckets_of, directions, factors
from longspan_kernels.bucketed import hash_keys, nearest_keys
from longspan_kernels.bucketed.tables import row_keys
from longspan_kernels.selected import (
    balance_causally,
    choose_blocks,
    choose_scored_blocks,
    selected_attention,
    selected_reference,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CASES = [
    ("moba", {"block_size": 64, "top_k": 3}),
    ("moba", {"block_size": 128, "top_k": 2}),
    ("nsa", {"block_size": 64, "top_k": 4}),
    ("reformer", {"chunk": 64, "buckets": 8, "rounds": 2}),
    ("reformer", {"chunk": 64, "buckets": 8, "rounds": 2, "chunks": "sorted"}),
    ("routing", {"clusters": 8, "membership": "balanced"}),
    ("routing", {"clusters": 8, "membership": "nearest"}),
    ("sinkhorn", {"block_size": 64}),
    ("compressed", {"window": 100, "rate": 8}),
]


def made(name, settings, causal):
    torch.manual_seed(0)
    module = getattr(variants, name)(heads=4, kv_heads=2, head_dim=64, max_length=1000, causal=causal, **settings)
    generator = torch.Generator().manual_seed(0)
    # Values that bfloat16 holds exactly, so that every precision chooses among the same.
    tensors = [torch.randn(2, n, 500, 64, generator=generator).bfloat16().double() for n in (4, 2, 2)]
    return module.eval(), tensors, torch.tensor([500, 311])


def results(module, tensors, lengths, device, dtype):
    module = copy.deepcopy(module).to(device, dtype)
    leaves = [x.to(device, dtype).requires_grad_() for x in tensors]
    out = module(*leaves, lengths=lengths.to(device))
    gradients = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
    return [out, *(torch.zeros(1) if g is None else g for g in gradients)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_agrees_with_the_cpu(name, settings, causal):
    module, tensors, lengths = made(name, settings, causal)
    expected = results(module, tensors, lengths, "cpu", torch.float64)
    for a, b in zip(results(module, tensors, lengths, "cuda", torch.float32), expected, strict=True):
        # A choice between two that are all but equal may fall otherwise: few do.
        assert float((a.double().cpu() - b).norm() / (b.norm() + 1e-9)) < 2e-2


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_nothing_waits_for_the_device(name, settings):
    module, tensors, lengths = made(name, settings, True)
    module = module.cuda().bfloat16()
    leaves = [x.cuda().bfloat16().requires_grad_() for x in tensors]
    lengths = lengths.cuda()
    module(*leaves, lengths=lengths).square().sum().backward()  # compiles kernels and makes layouts
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(*leaves, lengths=lengths).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def close(found, expected, tolerance):
    """Errors beside the norm of what is expected."""
    for a, b in zip(found, expected, strict=True):
        assert float((a.double() - b.double()).norm() / b.double().norm()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float16, 1e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("size", "length", "causal"), [(512, 1300, True), (512, 1300, False), (64, 700, True)])
def test_attention_to_chosen_blocks_is_the_definition(size, length, causal, dtype, tolerance):
    torch.manual_seed(0)
    q, k, v, dout = (torch.randn(2, 4, length, 64, device="cuda").to(dtype).requires_grad_() for _ in range(4))
    blocks, own = -(-length // size), torch.arange(length, device="cuda") // size
    scores = torch.rand(2, 4, length, blocks, device="cuda")
    if causal:
        scores.masked_fill_(torch.arange(blocks, device="cuda") >= own[:, None], -1.0)
    scores.scatter_(3, own.view(1, 1, -1, 1).expand(2, 4, -1, 1), 2.0)
    best = scores.topk(3, -1)
    picks = torch.where(best.values < 0, -1, best.indices)
    call = {"causal": causal, "lengths": torch.tensor([length, length // 2], device="cuda")}
    results = []
    for _ in range(2):
        out = selected_attention(q, k, v, picks, size, backend="triton", **call)
        results.append((out, *torch.autograd.grad(out, (q, k, v), dout)))
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected, _ = selected_reference(*exact, picks, size, **call)
    close(results[0], (expected, *torch.autograd.grad(expected, exact, dout.double())), tolerance)


@pytest.mark.parametrize(("blocks", "existing"), [(256, None), (256, 200), (100, None), (300, 280), (1024, None)])
def test_balancing_is_the_definition(blocks, existing):
    torch.manual_seed(0)
    scores, dout = (torch.randn(1, 2, blocks, blocks, device="cuda") for _ in range(2))
    scores.mul_(2.0).requires_grad_()
    some = None if existing is None else torch.tensor([existing], device="cuda")
    results = []
    for _ in range(2):
        out = balance_causally(scores, some, 7, "triton")
        results.append((out, torch.autograd.grad(out, scores, dout)[0]))
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
    exact = scores.detach().double().requires_grad_()
    expected = balance_causally(exact, some, 7, "blocked")
    close(results[0], (expected, torch.autograd.grad(expected, exact, dout.double())[0]), 1e-5)


@pytest.mark.parametrize("buckets", [8, 512, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_hashes_and_nearest_centroids_are_the_definitions(buckets, dtype):
    torch.manual_seed(0)
    q, rotations = torch.randn(1, 4, 3000, 64).to(dtype), torch.randn(4, 64, 2, directions(buckets))
    expected = row_keys(buckets_of(q.double(), rotations.double(), buckets).flatten(0, 2), buckets)
    found = hash_keys(q.cuda(), rotations.cuda(), factors(buckets)).cpu()
    assert float((found != expected).float().mean()) < 2e-3  # two directions may be all but equally near
    means = torch.randn(4, 100, 64)
    expected = row_keys((q.double() @ means.double().mT).argmax(-1).flatten(0, 1), 100)
    assert float((nearest_keys(q.cuda(), means.cuda()).cpu() != expected).float().mean()) < 2e-3


def close_choices(picks, expected, scores):
    """Picks of float32 scores: as many as in float64, and no worse than rounding makes them."""
    assert (picks < 0).sum(-1).equal((expected < 0).sum(-1))
    ordered = picks.sort(-1).values
    assert not ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()
    ours, best = (scores.gather(-1, p.long().clamp(min=0)).masked_fill(p < 0, 0.0).sort(-1).values for p in (picks, expected))
    torch.testing.assert_close(ours, best, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("length", "width", "picks"), [(4096, 64, 3), (1000, 128, 8), (517, 80, 16), (777, 256, 2), (40, 16, 3)]
)
def test_blocks_are_chosen_as_by_plain_torch(length, width, picks, dtype, causal):
    torch.manual_seed(0)
    size = 16
    q = torch.randn(2, length, 4, width, device="cuda").to(dtype).transpose(1, 2)
    means = torch.randn(2, 2, -(-length // size), width, device="cuda")
    exact = q.double(), means.double()
    scores = exact[0] @ exact[1].repeat_interleave(2, 1).mT
    for lengths in (None, torch.tensor([length, length // 3], device="cuda")):
        call = {"causal": causal, "lengths": lengths}
        expected = choose_blocks(*exact, picks, size, **call)  # float64 is chosen by torch
        close_choices(choose_blocks(q, means, picks, size, backend="triton", **call), expected, scores)
        rows = scores[:, :, 20 : length - 1].float()
        found = choose_scored_blocks(rows, picks, size, length, first_row=20, backend="triton", **call)
        close_choices(found, expected[:, :, 20 : length - 1], scores[:, :, 20 : length - 1])
