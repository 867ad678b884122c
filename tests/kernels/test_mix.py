"""The gated sum of branches, interpreted Triton beside plain torch."""

import pytest
import torch

from longspan_kernels.errors import KernelError
from longspan_kernels.selected import gated_sum


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the compiled kernels")
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("width", [16, 20])
def test_triton_is_plain_torch(width, count, monkeypatch):
    g = torch.Generator().manual_seed(0)
    gates = torch.rand(2, 3, 23, count, generator=g)
    parts = [torch.randn(2, 3, 23, width, generator=g) for _ in range(count)]
    weight = torch.randn(2, 3, 23, width, generator=g)
    results = []
    for backend in ("blocked", "triton"):
        monkeypatch.setenv("TRITON_INTERPRET", "1" if backend == "triton" else "0")
        leaves = [x.clone().requires_grad_() for x in (gates, *parts)]
        out = gated_sum(leaves[0], leaves[1:], backend)
        results.append((out, *torch.autograd.grad(out, leaves, weight)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_shapes_that_do_not_fit_are_named():
    x = torch.randn(2, 2, 8, 16)
    for gates, last in ((torch.rand(2, 2, 7, 3), x), (torch.rand(2, 2, 8, 3), x[:, :1])):
        with pytest.raises(KernelError, match=r"give \(2, 2, 8, 3\) and all of one shape"):
            gated_sum(gates, (x, x, last))
