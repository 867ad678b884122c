"""Patterns on a GPU: the same draws as on the CPU, and a million tokens lowered in well under a second."""

import pytest
import torch

from longspan import sparse_attention
from longspan.patterns import BigBird, BlockTable, Global, Local, Longformer, Predicate, Random, Strided

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PATTERNS = [
    BigBird(16),
    Random(3, 16, seed=5),
    Local(9, 2) | Strided(7),
    Longformer(9, (0, 77)) & Global(first=90),
    BlockTable(torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.3, 16),
    Predicate(lambda b, h, q_idx, kv_idx: (q_idx + h) % 3 == kv_idx % 3),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.key[:30])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_are_those_of_the_cpu(pattern, causal):
    for q_len, k_len in ((300, 300), (17, 250)):
        on_gpu = pattern.mask(q_len, k_len, heads=3, causal=causal, device="cuda")
        assert on_gpu.is_cuda and on_gpu.cpu().equal(pattern.mask(q_len, k_len, heads=3, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
def test_a_million_tokens_and_32_heads(causal):
    pattern, length = BigBird(64), 1 << 20
    pattern.head_rules(4096, 4096, 32, causal, "cuda")  # starts CUDA
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    pattern.head_rules(length, length, 32, causal, "cuda")
    stop.record()
    torch.cuda.synchronize()
    assert start.elapsed_time(stop) < 500  # ms


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_each_sequence_has_the_pattern_of_its_own_length(place):
    q, k, v = (torch.randn(4, heads, 300, 64, device="cuda") for heads in (4, 2, 2))
    pattern, lengths = BigBird(32, 1, 1, 2), torch.tensor([300, 90, 65, 0])
    out = sparse_attention(q, k, v, pattern, lengths=lengths.to(place), backend="triton")
    assert isinstance(out, torch.Tensor)
    for b, n in enumerate(lengths.tolist()):
        alone = sparse_attention(*(x[b : b + 1, :, :n] for x in (q, k, v)), pattern, backend="dense")
        torch.testing.assert_close(out[b : b + 1, :, :n], alone, atol=1e-2, rtol=1e-2)
        assert not out[b, :, n:].any()
