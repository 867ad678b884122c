"""Errors of the Triton kernels beside those of dense attention in the same dtype, both against float64."""

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/gpu runs the compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

from errors_beside_dense import errors_beside_dense

from longspan.patterns import BigBird, Full, Local, Strided

CASES = [(Full(), False), (Full(), True), (Local(50), True), (BigBird(16, 3, 1, 2), False), (Local(16) | Strided(16), True)]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("pattern", "causal"), CASES, ids=lambda x: str(x)[:30])
def test_errors_are_at_most_twice_those_of_dense_attention(pattern, causal, dtype):
    for name, (ours, dense) in errors_beside_dense(pattern, causal, 100, dtype, "cpu").items():
        assert 0 < ours <= 2 * dense, f"{name}: {ours:.1e} beside {dense:.1e}"
