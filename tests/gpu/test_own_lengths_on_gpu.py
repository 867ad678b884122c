"""Lengths on a GPU, both ways, of patterns that follow from the length: read once, and again after a change."""

from __future__ import annotations

import pytest
import torch

from longspan import own_lengths, sparse_attention
from longspan.patterns import BigBird
from longspan_kernels.errors import BackendError
from longspan_kernels.launch.launcher import Plan

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
    kept = own_lengths._kept.of(lengths)
    sparse_attention(*leaves, PATTERN, lengths=lengths)
    assert len(kept) == 2 and own_lengths._kept.of(lengths) == kept
    lengths[1] = 100
    out = sparse_attention(*leaves, PATTERN, lengths=lengths)
    torch.testing.assert_close(out, alone(leaves, [1024, 100, 130]), atol=2e-2, rtol=2e-2)


def test_a_compiled_graph_follows_other_lengths():
    leaves, lengths = inputs(), torch.tensor([1024, 700, 130], device="cuda")
    compiled = torch.compile(
        lambda q, k, v, lengths: sparse_attention(q * 1, k, v, PATTERN, lengths=lengths) + 1, fullgraph=True
    )
    for own in (lengths, lengths.flip(0)):
        out = compiled(*leaves, own)
        torch.testing.assert_close(out - 1, sparse_attention(*leaves, PATTERN, lengths=own), atol=2e-2, rtol=2e-2)


def test_a_recorded_graph_follows_other_lengths():
    q, k, v = (x.detach() for x in inputs())
    lengths = torch.tensor([1024, 700, 130], device="cuda")
    right = {own: sparse_attention(q, k, v, PATTERN, lengths=torch.tensor(own)) for own in ((1024, 700, 130), (64, 1000, 1))}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sparse_attention(q, k, v, PATTERN, lengths=lengths)
    for own, expected in right.items():
        lengths.copy_(torch.tensor(own))
        graph.replay()
        torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
    on_host = lengths.cpu()
    with pytest.raises(BackendError, match="while a CUDA graph is recorded"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        sparse_attention(q, k, v, PATTERN, lengths=on_host)


def test_each_pass_of_a_batch_is_a_few_launches_whatever_the_lengths(monkeypatch):
    leaves = inputs(batch=8)
    lengths = torch.tensor([1024, 900, 800, 700, 600, 500, 400, 300], device="cuda")
    out = sparse_attention(*leaves, PATTERN, lengths=lengths)
    torch.autograd.grad(out, leaves, out.detach())  # compiles: kernels are named once more while they are collected
    launched, launch = [], Plan.__call__
    monkeypatch.setattr(
        Plan, "__call__", lambda plan, *tensors: launched.append(plan.kernel.__name__) or launch(plan, *tensors)
    )
    out = sparse_attention(*leaves, PATTERN, lengths=lengths)
    torch.autograd.grad(out, leaves, out.detach())
    assert launched.count("forward_rows") == launched.count("backward_columns") == 1 and len(launched) <= 4
