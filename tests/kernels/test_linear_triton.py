"""The Triton kernels of linear attention, interpreted on the CPU, against the reference: outputs, states, gradients."""

import pytest
import torch
from drawn_linear import LinearCall, compare_with_reference

if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/gpu runs the compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

from longspan_kernels.linear.triton import configs, launches

TOLERANCE = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 6e-3}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launches, "LEAST_CHUNKS", 2)
    monkeypatch.setattr(configs, "WIDE", dict.fromkeys((64, 128, 256), (16, 1)))


@pytest.mark.parametrize(
    "call",
    [
        LinearCall(T=90),
        LinearCall(T=90, decay=0.5, state=True),
        LinearCall(B=2, H=1, shared=2, T=75, D=24, Dv=40, decay=0.5, lengths=True, segments=True),
        LinearCall(B=2, H=1, T=90, decay=0.5, state=True, lengths=True),
        LinearCall(B=2, H=1, T=70, state=True, segments=True, seed=3),
        LinearCall(H=1, T=50, D=16, Dv=80, decay=0.5, seed=4),
        LinearCall(T=1, decay=0.5, state=True),
        LinearCall(H=1, T=64, decay=4.0, state=True),
    ],
    ids=str,
)
def test_every_gradient(call):
    compare_with_reference(call, "triton", torch.float32, TOLERANCE[torch.float32])


def test_one_segment(monkeypatch):
    monkeypatch.setattr(launches, "LEAST_CHUNKS", 100)
    compare_with_reference(LinearCall(T=70, decay=0.3, state=True), "triton", torch.float32, TOLERANCE[torch.float32])


def test_float16_with_a_state_beyond_its_range():
    call = LinearCall(H=1, T=70, decay=0.3, state=True)
    compare_with_reference(call, "triton", torch.float16, TOLERANCE[torch.float16])
    from longspan_kernels.linear import linear_attention

    q = torch.full((1, 1, 80, 16), 0.01, dtype=torch.float16)
    k = torch.full_like(q, 8.0)
    v = torch.full_like(q, 200.0)
    out, state = linear_attention(q, k, v, return_state=True, scale=1e-3, backend="triton")
    expected = linear_attention(q.double(), k.double(), v.double(), scale=1e-3)
    assert state.max() > 65504 and out.isfinite().all()
    torch.testing.assert_close(out.double(), expected, rtol=4e-3, atol=0.0)


def test_bfloat16_is_not_multiplied_as_whole_numbers():
    call = LinearCall(H=1, shared=2, T=40, D=24, decay=0.3, state=True, lengths=True)
    compare_with_reference(call, "triton", torch.bfloat16, TOLERANCE[torch.bfloat16])


def test_heads_that_lie_apart_are_not_copied(monkeypatch):
    x = torch.randn(1, 40, 3, 16).transpose(1, 2)
    assert launches.ready(x) is x
    assert launches.ready(x.transpose(2, 3)).stride(-1) == 1
