"""Content-based variants beside lucidrains' packages, given the same random directions or the same matching."""

import pytest
import torch
from chosen_by_content import PLACE, draw

import longspan.attention as variants


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rounds", [1, 3])
def test_reformer_pytorch(causal, rounds):
    peer = pytest.importorskip("reformer_pytorch.reformer_pytorch", reason="reformer-pytorch is not installed")
    theirs = peer.LSHAttention(
        bucket_size=16, n_hashes=rounds, causal=causal, attend_across_buckets=False, allow_duplicate_attention=False
    ).eval()
    place = PLACE | {"kv_heads": 4, "causal": causal}
    ours = variants.reformer(chunk=16, buckets=8, rounds=rounds, chunks="sorted", **place).eval()
    qk, _, v = draw(128, kv_heads=4)
    torch.manual_seed(3)
    shared = torch.randn(1, 16, rounds, 4, dtype=torch.float64)  # they draw one rotation for all heads
    ours.eval_rotations = shared.expand(4, 16, rounds, 4)
    torch.manual_seed(3)
    # their scores are divided by sqrt(D), which the authors' code does not
    expected = theirs((qk * 16**0.5).flatten(0, 1), v.flatten(0, 1))[0].view_as(v)
    out = ours(qk, qk, v)
    # their keys' lengths have no epsilon, ours the authors' 1e-6
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=2e-5)
    weight = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, (qk, v), weight), torch.autograd.grad(expected, (qk, v), weight), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


def test_sinkhorn_transformer():
    peer = pytest.importorskip("sinkhorn_transformer.sinkhorn_transformer", reason="sinkhorn-transformer is not installed")
    place = PLACE | {"kv_heads": 4, "causal": False}
    ours = variants.sinkhorn(block_size=16, **place).double().eval()
    theirs = peer.SinkhornAttention(16, 64, 16, 4, 96, non_permutative=False)
    q, kv, _ = draw(96, kv_heads=4)
    blocks = [x.unflatten(2, (6, 16)) for x in (q, kv)]
    matching = ours.matching(*blocks, torch.tensor([96]))
    scores = blocks[0].mean(3) @ blocks[1].mean(3).transpose(-1, -2) / 16**0.5 / ours.temperature
    by_them = peer.sinkhorn_sorting_operator(scores.flatten(0, 1), ours.iterations)
    torch.testing.assert_close(matching.flatten(0, 1), by_them)
    # Their sorting network makes a logarithm of what is positive; the paper normalises exp(scores), as by_them is.
    theirs.sort_net.forward = lambda q, k, topk: by_them
    out = ours(q, kv, kv)
    expected = theirs(q, kv, kv)  # keys are values: version 0.11.4 takes matched keys for matched values
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, (q, kv), weight), torch.autograd.grad(expected, (q, kv), weight), strict=True):
        torch.testing.assert_close(a, b)
