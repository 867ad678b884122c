"""Linear attention in plain torch against the reference: outputs, states, gradients, decoding, both ways, errors."""

from functools import partial

import pytest
import torch
from drawn_linear import LinearCall, compare_with_reference, linear_calls
from hypothesis import given, settings

from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.linear import blocks, chunked, gated_delta_rule, linear_attention, reference_linear_attention


@given(linear_calls(110))
@settings(max_examples=15, deadline=None)
def test_chunks_give_what_tokens_give(call):
    compare_with_reference(call, "chunked", torch.float64, 1e-11)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types(dtype, backend):
    tolerance = {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}[dtype]
    compare_with_reference(LinearCall(2, 2, 2, 130, 24, 40, 0.3, True, True, True), backend, dtype, tolerance)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_the_state_is_float32_and_gates_may_be(backend, delta):
    tensors = LinearCall(T=20, decay=0.3, state=True, delta=delta).tensors()
    q, k, v = (tensors[name].bfloat16() for name in "qkv")
    call = {"log_decay": tensors["log_decay"].float(), "initial_state": tensors["initial_state"].float(), "backend": backend}
    op = partial(gated_delta_rule, beta=tensors["beta"].float()) if delta else linear_attention
    out, state = op(q, k, v, return_state=True, **call)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        beneath, held = op(q, k, v, return_state=True, **call)
    assert beneath.equal(out) and held.equal(state)


def test_many_pieces(monkeypatch):
    monkeypatch.setitem(chunked.ELEMENTS_AT_ONCE, "cpu", 1)
    compare_with_reference(LinearCall(T=300, decay=0.2, state=True, segments=True), "chunked", torch.float64, 1e-11)


def test_the_formula_of_the_definition():
    q, k, v = (torch.randn(1, 2, 9, 16, dtype=torch.float64) for _ in range(3))
    g = -torch.rand(1, 2, 9, dtype=torch.float64)
    expected = torch.zeros(1, 2, 9, 16, dtype=torch.float64)
    for i in range(9):
        for j in range(i + 1):
            weight = g[:, :, j + 1 : i + 1].sum(-1).exp() * (q[:, :, i] * k[:, :, j]).sum(-1)
            expected[:, :, i] += 0.3 * weight[..., None] * v[:, :, j]
    for backend in ("reference", "chunked"):
        torch.testing.assert_close(linear_attention(q, k, v, log_decay=g, scale=0.3, backend=backend), expected)


def test_a_decay_a_head_and_a_closed_gate():
    q, k, v = (torch.randn(2, 3, 70, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    fixed = torch.tensor([-0.1, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    out = linear_attention(q, k, v, log_decay=fixed)
    expected, _ = reference_linear_attention(q, k, v, log_decay=fixed)
    torch.testing.assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(x.square().sum(), fixed, retain_graph=True)[0] for x in (out, expected))
    torch.testing.assert_close(ours, theirs)
    closed = torch.zeros(2, 3, 70, dtype=torch.float64)
    closed[:, :, 33] = float("-inf")
    anew = linear_attention(q[:, :, 33:], k[:, :, 33:], v[:, :, 33:])
    torch.testing.assert_close(linear_attention(q, k, v, log_decay=closed)[:, :, 33:], anew)


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 100, 149, 150])
def test_a_sequence_in_two_calls(cut):
    call = LinearCall(B=2, T=150, decay=0.2).tensors()
    q, k, v, g = (call[name] for name in ("q", "k", "v", "log_decay"))
    whole, last = linear_attention(q, k, v, log_decay=g, return_state=True)
    parts, state = [], None
    for here in (slice(0, cut), slice(cut, 150)):
        part, state = linear_attention(
            q[:, :, here], k[:, :, here], v[:, :, here], log_decay=g[:, :, here], initial_state=state, return_state=True
        )
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("places", [{}, {"lengths": [70, 0]}, {"segments": True}, {"lengths": [70, 33], "segments": True}])
def test_both_ways(places):
    call = LinearCall(B=2, H=2, shared=2, T=75, Dv=24)
    leaves = [x.detach().requires_grad_() for x in (call.tensors()[name] for name in "qkv")]
    rest = {
        "lengths": torch.tensor(places["lengths"]) if "lengths" in places else None,
        "segments": (torch.rand(2, 75) < 0.1).cumsum(1) if "segments" in places else None,
    }
    out = linear_attention(*leaves, causal=False, scale=0.4, **rest)
    expected, _ = reference_linear_attention(*leaves, causal=False, scale=0.4, **rest)
    torch.testing.assert_close(out, expected)
    dout = torch.randn_like(out)
    for ours, theirs in zip(*(torch.autograd.grad(x, leaves, dout) for x in (out, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_lies_beyond_a_length_may_be_anything():
    q, k, v = (torch.randn(2, 2, 40, 16) for _ in range(3))
    g, lengths = -torch.rand(2, 2, 40), torch.tensor([25, 40])
    for causal in (True, False):
        decay = g if causal else None
        clean = linear_attention(q, k, v, log_decay=decay, lengths=lengths, causal=causal)
        dirty = [x.clone() for x in (q, k, v, g)]
        for x in dirty:
            x[0, :, 25:] = float("nan")
        dirty = [x.requires_grad_() for x in dirty]
        out = linear_attention(*dirty[:3], log_decay=dirty[3] if causal else None, lengths=lengths, causal=causal)
        assert out.equal(clean) and not out[0, :, 25:].any()
        out.square().sum().backward()
        for x in dirty[: 4 if causal else 3]:
            assert not x.grad[0, :, 25:].any() and x.grad.isfinite().all()


def test_without_tokens_the_state_stays():
    state = torch.randn(1, 2, 16, 24, requires_grad=True)
    q, v = torch.randn(1, 2, 0, 16), torch.randn(1, 2, 0, 24)
    out, last = linear_attention(q, q, v, initial_state=state, return_state=True)
    assert out.shape == (1, 2, 0, 24) and last.equal(state)
    last.sum().backward()
    assert state.grad.equal(torch.ones_like(state))


def test_op_contract():
    call = LinearCall(T=6, H=1, decay=0.3, state=True)
    given = {name: x for name, x in call.tensors().items() if x is not None}
    q, k, v, g, state = (x.requires_grad_() for x in given.values())
    args = (q, k, v, g, None, None, state, 0.5, True, "chunked")
    torch.library.opcheck(torch.ops.longspan.linear_attention_forward.default, args)


def test_compiles_whole_and_under_autocast():
    q, k, v = (torch.randn(1, 2, 70, 16, requires_grad=True) for _ in range(3))
    g = -torch.rand(1, 2, 70)

    def step(q, k, v, g):
        return linear_attention(q, k, v, log_decay=g, return_state=True)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for ours, theirs in zip(compiled(q, k, v, g), step(q, k, v, g), strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = step(q, k, v, g)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": torch.zeros(1, 3, 8, 16)}, "2 query heads cannot share 3 key heads"),
        ({"k": torch.zeros(1, 2, 7, 16)}, r"k has shape .* give \[1, 2, 8, 16\]"),
        ({"v": torch.zeros(1, 2, 8, 300)}, "v is 300 wide; heads are 16 to 256 wide"),
        ({"v": torch.zeros(1, 2, 8, 16).half()}, "v is torch.float16"),
        ({"log_decay": torch.zeros(1, 8)}, r"log_decay has shape \[1, 8\]; give \[1, 2, 8\] or \[2\]"),
        ({"initial_state": torch.zeros(2, 16, 16)}, "initial_state has shape"),
        ({"lengths": torch.zeros(1)}, "lengths is torch.float32; give whole numbers"),
        ({"segments": torch.zeros(8, dtype=torch.long)}, r"segments has shape \[8\]; give \[1, 8\]"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale": None}, "scale=None; give a finite number"),
        ({"k": None}, r"k is None; give a tensor \[B, Hkv, T, D\]"),
        ({"log_decay": -0.5}, r"log_decay is a float; give a tensor \[B, H, T\] or \[H\]"),
        ({"lengths": [8]}, r"lengths is a list; give a tensor \[B\] of whole numbers"),
        ({"log_decay": torch.zeros(2, device="meta")}, "log_decay is on meta, q on cpu; give both on one device"),
        ({"initial_state": torch.zeros(1, 2, 16, 16, device="meta")}, "initial_state is on meta"),
        ({"causal": False, "log_decay": torch.zeros(2)}, "causal=False takes no log_decay"),
    ],
)
def test_wrong_arguments_are_named(change, words):
    call = {name: torch.zeros(1, 2, 8, 16) for name in "qkv"}
    with pytest.raises(KernelError, match=words):
        linear_attention(**call | change)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("B", "T"), [(2, 0), (0, 5)])
@pytest.mark.parametrize("packed", [True, False])
def test_no_token_at_all(causal, B, T, packed):
    q, k, v = (torch.zeros(B, 3, T, width, requires_grad=True) for width in (16, 16, 24))
    out = linear_attention(q, k, v, causal=causal, segments=torch.zeros(B, T, dtype=torch.int32) if packed else None)
    assert out.shape == (B, 3, T, 24)
    out.sum().backward()
    assert q.grad.shape == q.shape and v.grad.shape == v.shape


def test_wrong_backends_are_named():
    q = torch.zeros(1, 2, 8, 16)
    with pytest.raises(BackendError, match="'fast' is unknown; choose one of auto, triton, chunked"):
        linear_attention(q, q, q, backend="fast")
    with pytest.raises(BackendError, match='backend="fla" cannot serve this call'):
        linear_attention(q, q, q, backend="fla")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match='use backend="chunked"'):
            linear_attention(q, q, q, backend="triton")


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("length", "strength"), [(200, 0.05), (200, 0.3), (64, 0.3), (30, 0.6), (1, 3.0)])
def test_decays_taken_into_the_tokens_change_nothing(length, strength, dtype, cut, monkeypatch):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, length, 16, generator=g, dtype=dtype) for n in (4, 2, 2))
    decay = -strength * torch.rand(2, 4, length, generator=g, dtype=dtype)
    leaves = [x.requires_grad_() for x in (q, k, v, decay, torch.randn(2, 4, 16, 16, generator=g, dtype=dtype))]
    results = []
    for least in (blocks.FACTORED, 1.0):  # no sum of decays is above 0
        monkeypatch.setattr(blocks, "FACTORED", least)
        call = {"log_decay": decay, "initial_state": leaves[4], "lengths": torch.tensor([length, length // 3]) if cut else None}
        assert blocks.Call.of(q, v, decay, None, None, {"cpu": 1 << 16}, may_factor=True).factored == (least < 0)
        out, state = linear_attention(q, k, v, return_state=True, backend="chunked", **call)
        weight = torch.linspace(-1, 1, 16)
        loss = (out.double() * weight).sum() + (state.double() * weight).sum()
        results.append([out, state, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        assert float((a - b).norm() / b.norm()) < (1e-12 if dtype == torch.float64 else 2e-6)


def test_strong_decays_stay_out_of_the_tokens():
    decay = torch.full((1, 1, 130), -0.1)
    decay[0, 0, 70] = -50.0
    assert not blocks.Call.of(*[torch.zeros(1, 1, 130, 16)] * 2, decay, None, None, {"cpu": 1 << 16}, may_factor=True).factored
