"""Lengths on a GPU, both ways, of patterns that follow from the length: read once, and again after a change."""

from __future__ import annotations

import pytest
import torch

from longspan import own_lengths, sparse_attention
from longspan.patterns import BigBird

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PATTERN = BigBird(64, 3, 2, 2)


def inputs(batch=3, length=1024):
    g = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(batch, 4, length, 64, generator=g, device="cuda").bfloat16().requires_grad_() for _ in range(3)]


def alone(leaves, lengths):
    """Each sequence by itself, without padding."""
    out = torch.zeros_like(leaves[0])
    for b, n in enumerate(lengths):
        out[b, :, :n] = sparse_attention(*(x[b : b + 1, :, :n] for x in leaves), PATTERN)[0]
    return out


def test_padding_moves_no_output():
    leaves, given = inputs(), [1024, 700, 130]
    for lengths in (torch.tensor(given), torch.tensor(given, device="cuda")):
        out = sparse_attention(*leaves, PATTERN, lengths=lengths)
        torch.testing.assert_close(out, alone(leaves, given), atol=2e-2, rtol=2e-2)
        gradients = torch.autograd.grad(out.float().square().sum(), leaves)
        assert all(x.isfinite().all() for x in gradients)


def test_lengths_are_read_once_until_they_change():
    leaves, lengths = inputs(), torch.tensor([1024, 700, 130], device="cuda")
    sparse_attention(*leaves, PATTERN, lengths=lengths)
    read = own_lengths._read[lengths]
    sparse_attention(*leaves, PATTERN, lengths=lengths)
    assert own_lengths._read[lengths] is read
    lengths[1] = 100
    out = sparse_attention(*leaves, PATTERN, lengths=lengths)
    torch.testing.assert_close(out, alone(leaves, [1024, 100, 130]), atol=2e-2, rtol=2e-2)


def test_blocks_compile_around_it():
    leaves, lengths = inputs(), torch.tensor([1024, 700, 130], device="cuda")
    compiled = torch.compile(lambda q, k, v, lengths: sparse_attention(q * 1, k, v, PATTERN, lengths=lengths) + 1)
    out = compiled(*leaves, lengths)
    torch.testing.assert_close(out - 1, sparse_attention(*leaves, PATTERN, lengths=lengths), atol=2e-2, rtol=2e-2)
