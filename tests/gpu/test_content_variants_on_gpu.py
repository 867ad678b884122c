"""Variants that choose by content on a GPU: as in float64 on the CPU, and nothing in them waits for the device."""

import copy

import pytest
import torch

import longspan.attention as variants
from longspan_kernels.selected import choose_blocks, choose_scored_blocks

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


def close_choices(picks, expected, scores):
    """Picks of float32 scores: as many as in float64, and no worse than rounding makes them."""
    assert (picks < 0).sum(-1).equal((expected < 0).sum(-1))
    ordered = picks.sort(-1).values
    assert not ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()
    ours, best = (scores.gather(-1, p.clamp(min=0)).masked_fill(p < 0, 0.0).sort(-1).values for p in (picks, expected))
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
