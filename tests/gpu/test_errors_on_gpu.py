"""Errors of the kernels beside those of dense attention in the same dtype, both against float64."""

import pytest
import torch
from errors_beside_dense import errors_beside_dense

from longspan.patterns import BigBird, Full, Local, Strided

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("pattern", "causal"),
    [(Full(), True), (Local(512), True), (BigBird(64, 3, 3, 2), False), (Local(128) | Strided(128), True)],
    ids=lambda x: str(x)[:30],
)
def test_errors_are_at_most_twice_those_of_dense_attention(pattern, causal, dtype, width):
    for name, (ours, dense) in errors_beside_dense(pattern, causal, 2048, dtype, "cuda", width).items():
        assert 0 < ours <= 2 * dense, f"{name}: {ours:.1e} beside {dense:.1e}"
