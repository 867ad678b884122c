"""The Triton kernels of the gated delta rule, interpreted on the CPU, against the reference: outputs, states, gradients."""

import pytest
import torch
from drawn_linear import LinearCall, compare_with_reference

if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/gpu runs the compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

from longspan_kernels.linear.triton import configs, delta_launches

TOLERANCE = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 6e-3}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Short chunks and narrow tiles, so that few tokens and columns make several of each."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    made = configs.delta_tiles(64, torch.float32).kernels
    tiles = {name: configs.DeltaTile(16, tile.launch) for name, tile in made.items()}
    monkeypatch.setattr(delta_launches, "delta_tiles", lambda width, dtype: configs.DeltaTiles(16, tiles))


@pytest.mark.parametrize(
    "call",
    [
        LinearCall(H=1, T=40),
        LinearCall(H=1, T=50, D=64, Dv=32, decay=0.5, state=True),
        LinearCall(H=1, T=20, D=128, Dv=16, decay=0.5, state=True, seed=6),
        LinearCall(B=2, H=1, shared=2, T=45, D=24, Dv=40, decay=0.5, state=True, lengths=True, segments=True),
        LinearCall(B=2, H=1, T=40, state=True, segments=True, seed=3),
        LinearCall(H=1, T=1, decay=0.5, state=True),
        LinearCall(H=1, T=48, decay=30.0, state=True, seed=4),
    ],
    ids=str,
)
def test_every_gradient(call):
    call = LinearCall(**{**vars(call), "delta": True})
    compare_with_reference(call, "triton", torch.float32, TOLERANCE[torch.float32])


def test_float16():
    call = LinearCall(H=1, T=40, D=32, Dv=16, decay=0.3, state=True, delta=True)
    compare_with_reference(call, "triton", torch.float16, TOLERANCE[torch.float16])


def test_bfloat16_is_not_multiplied_as_whole_numbers():
    call = LinearCall(H=1, shared=2, T=40, D=24, decay=0.3, state=True, lengths=True, delta=True)
    compare_with_reference(call, "triton", torch.bfloat16, TOLERANCE[torch.bfloat16])


def test_keys_that_repeat():
    """The system is then far from the identity: all its entries below the diagonal are beta."""
    from longspan_kernels.linear import gated_delta_rule

    draw = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.ones(1, 1, 48, 16), dim=-1)
    v, beta = torch.randn(1, 1, 48, 16, generator=draw), torch.full((1, 1, 48), 0.97)
    out = gated_delta_rule(k, k, v, beta, backend="triton")
    expected = gated_delta_rule(k.double(), k.double(), v.double(), beta.double(), backend="reference")
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_what_lies_beyond_a_length_is_not_read():
    from longspan_kernels.linear import gated_delta_rule

    call = LinearCall(B=1, H=1, T=40, decay=0.3, delta=True).tensors()
    given = {name: x.float() for name, x in call.items() if x is not None}
    lengths = torch.tensor([21])
    right, state = gated_delta_rule(**given, lengths=lengths, return_state=True, backend="triton")
    for x in given.values():
        x[:, :, 21:] = float("nan")
        x.requires_grad_()
    out, last = gated_delta_rule(**given, lengths=lengths, return_state=True, backend="triton")
    assert torch.equal(out, right) and torch.equal(last, state) and not out[:, :, 21:].any()
    dout = torch.ones_like(out)
    dout[:, :, 21:] = float("nan")
    for x, grad in zip(given.values(), torch.autograd.grad(out, list(given.values()), dout), strict=True):
        assert grad.isfinite().all() and not grad[:, :, 21:].any(), x.shape


@pytest.mark.parametrize("length", [1 << 40, 40, -3])
def test_a_length_out_of_range_counts_as_the_nearest_one(length):
    from longspan_kernels.linear import gated_delta_rule, linear_attention

    call = LinearCall(B=1, H=1, T=40, decay=0.3, delta=True).tensors()
    given = {name: x.float() for name, x in call.items() if x is not None}
    of_linear = {name: given[name] for name in ("q", "k", "v", "log_decay")}
    for rule, named in ((gated_delta_rule, given), (linear_attention, of_linear)):
        leaves = [x.requires_grad_() for x in named.values()]
        out = rule(**named, lengths=torch.tensor([length]), backend="triton")
        right = rule(**named, backend="triton") if length > 0 else torch.zeros_like(out)
        assert torch.equal(out, right)
        for grad in torch.autograd.grad(out.sum(), leaves):
            assert grad.any() == (length > 0)
