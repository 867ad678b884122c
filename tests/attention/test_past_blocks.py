"""Attention to earlier blocks, one key a block: torch's dense kernel, residue by residue, against tiles of the pattern."""

import pytest
import torch

from longspan.attention.compression import attend_to_past
from longspan.patterns.compressed_keys import CompressedKeys


@pytest.mark.parametrize(
    ("length", "step", "first", "blocks"),
    [
        (40, 4, 7, 9),
        (41, 4, 7, 9),
        (33, 16, 31, 1),
        (65, 16, 31, 3),
        (50, 8, 8, 7),
        (50, 8, 50, 7),
        (50, 8, 49, 7),
        (17, 3, 2, 5),
    ],
)
def test_residues_are_the_pattern(length, step, first, blocks):
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 4, length, 16), (2, 2, blocks, 16), (2, 2, blocks, 16))
    q, k, v = leaves = [torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight, lse_weight = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in (q.shape, q.shape[:3]))
    found = []
    for backend in ("auto", "blocked"):
        out, lse = attend_to_past(q, k, v, CompressedKeys(step, first), dropout_p=0.0, backend=backend)
        known = lse.masked_fill(lse.isinf(), 0.0)
        found.append([out, lse, *torch.autograd.grad([out, known], leaves, [weight, lse_weight])])
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, atol=1e-10, rtol=1e-9)
