"""Variants that choose by content on the Triton backend, interpreted on the CPU, against the plain-torch one."""

import pytest
import torch
from chosen_by_content import PLACE, draw

import longspan.attention as variants

if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/gpu runs the compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

CASES = [
    ("moba", {"block_size": 16, "top_k": 3}),
    ("dsa", {"top_k": 5, "indexer_width": 16}),
    ("nsa", {"block_size": 16, "top_k": 3, "compressed_block": 8, "compressed_stride": 4, "window": 12}),
    ("reformer", {"chunk": 16, "buckets": 4, "rounds": 2}),
    ("reformer", {"chunk": 32, "buckets": 4, "rounds": 2, "chunks": "sorted"}),
    ("reformer", {"chunk": 16, "buckets": 4, "rounds": 1, "chunks": "transformers"}),
    ("routing", {"clusters": 4, "membership": "balanced"}),
    ("routing", {"clusters": 4, "membership": "nearest"}),
    ("sinkhorn", {"block_size": 16}),
    ("compressed", {"window": 9, "rate": 4}),
    ("compressed", {"window": 9, "rate": 4, "causal": False}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)])
def test_agrees_with_plain_torch(name, settings, monkeypatch):
    # The interpreter takes a second for a handful of tiles: one direction each.
    settings = {"causal": name != "sinkhorn" and settings.get("membership") != "balanced"} | settings
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    results = []
    for backend in ("triton", "blocked"):
        torch.manual_seed(0)
        module = getattr(variants, name)(backend=backend, **PLACE | settings | {"heads": 2, "kv_heads": 1}).eval()
        q, k, v = (x.detach().float().requires_grad_() for x in draw(48, heads=2, kv_heads=1))
        out = module(q, k, v, lengths=torch.tensor([48, 27]))
        gradients = torch.autograd.grad(out.square().sum(), (q, k, v), allow_unused=True)
        results.append([out, *(torch.zeros(1) if g is None else g for g in gradients)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-4)


def test_sinkhorn_of_full_blocks_draws_its_noise_alike(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    results = []
    for backend in ("triton", "blocked"):
        module = variants.sinkhorn(backend=backend, **PLACE | {"block_size": 16, "heads": 2, "kv_heads": 1}).train()
        leaves = [x.detach().float().requires_grad_() for x in draw(48, heads=2, kv_heads=1)]
        torch.manual_seed(0)
        out = module(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-4)
