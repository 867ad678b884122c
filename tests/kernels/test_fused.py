"""All pairs by torch's fused CPU kernel, and blocks by it, against the definition in float64."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan import sparse_attention
from longspan.patterns import BigBird, Fixed, Full, Global, Local, PerHead, Random, Strided
from longspan_kernels.block_sparse import backends, op

PATTERNS = [
    Full(),
    Local(9),
    Local(40, 3),
    Strided(7),
    Strided(64),
    Fixed(16, 3),
    Local(20) | Global(first=5),
    Random(2, 16, 1),
    BigBird(16),
    PerHead([Local(64), Full(), Strided(5), Global(positions=(3, 50))]),
    Local(9) & Global(positions=(40,)),
]


def drawn(seed, batch, kv_heads, q_len, k_len, width, dtype):
    g = torch.Generator().manual_seed(seed)
    make = lambda h, t: torch.randn(batch, t, h, width, generator=g).to(dtype).transpose(1, 2)  # noqa: E731
    return make(4, q_len), make(kv_heads, k_len), make(kv_heads, k_len), make(4, q_len), g


@pytest.mark.parametrize("way", ["dense", "blocked"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_output_lse_and_gradients(way, data):
    pattern = data.draw(st.sampled_from(PATTERNS))
    causal, k_len = data.draw(st.booleans()), data.draw(st.integers(1, 300))
    q_len = data.draw(st.sampled_from([k_len, max(1, k_len // 3)]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
    batch, kv_heads = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 4]))
    q, k, v, dout, g = drawn(
        data.draw(st.integers(0, 99)), batch, kv_heads, q_len, k_len, data.draw(st.sampled_from([16, 33])), dtype
    )
    limits = {}
    if data.draw(st.booleans()):
        limits["lengths"] = tuple(torch.randint(0, n + 1, (batch,), generator=g) for n in (q_len, k_len))
    if data.draw(st.booleans()):
        limits["segments"] = tuple(torch.randint(0, 3, (batch, n), generator=g).sort(-1).values for n in (q_len, k_len))
    dlse = torch.randn(batch, 4, q_len, generator=g) if data.draw(st.booleans()) else None
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "chosen", lambda *_: way)
        for kind, backend in ((dtype, "auto"), (torch.float64, "dense")):
            leaves = [x.detach().to(kind).requires_grad_() for x in (q, k, v)]
            out, lse = sparse_attention(*leaves, pattern, causal=causal, return_lse=True, backend=backend, **limits)
            outputs, grads = [out], [dout.to(kind)]
            if dlse is not None:
                outputs, grads = [out, lse], [dout.to(kind), dlse.to(lse.dtype)]
            results.append([out, lse, *torch.autograd.grad(outputs, leaves, grads)])
    loose = dtype == torch.bfloat16
    for ours, exact in zip(*results, strict=True):
        assert not ours.isnan().any()
        torch.testing.assert_close(ours.double(), exact, atol=6e-2 if loose else 2e-5, rtol=2e-2 if loose else 2e-5)


def test_nan_beyond_lengths_and_at_keyless_queries_stays_there():
    q, k, v, dout, _ = drawn(0, 2, 4, 200, 200, 16, torch.float32)
    lengths = torch.tensor([70, 200])
    for x in (q, k, v, dout):
        x[0, :, 70:] = float("nan")
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    for way in ("dense", "blocked"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(op, "chosen", lambda *_, way=way: way)
            out = sparse_attention(*leaves, Local(9), lengths=lengths)
            found = [out, *torch.autograd.grad(out, leaves, dout)]
        assert all(bool((x[0, :, 70:] == 0).all()) and not x.isnan().any() for x in found)


def test_choice_by_the_model():
    q = torch.empty(1, 1, 1, 1).expand(1, 8, 65536, 64)
    assert backends.what_runs(q, q, Full().key, False, "auto") == ("dense", 8 * 65536**2)
    assert backends.what_runs(q, q, Local(256).key, False, "auto")[0] == "blocked"
    short = q[:, :, :100]
    assert backends.what_runs(short, short, Local(16).key, False, "auto") == ("dense", 8 * 100 * 100)
    assert backends.what_runs(short, short, Local(16).key, False, "auto", dropout_p=0.1)[0] == "blocked"  # keyed bits
    assert backends.what_runs(short.double(), short.double(), Local(16).key, False, "auto")[0] == "blocked"


def test_the_model_is_that_of_the_record():
    record = json.loads((Path(__file__).parents[2] / "benchmarks" / "cpu_choice.json").read_text())
    assert record["features"] == list(backends.FEATURES)
    for way, constants in (("dense", backends.DENSE), ("blocked", backends.BLOCKED)):
        assert {which: tuple(values) for which, values in record["constants"][way].items()} == constants
    waste = [row[which]["of_the_quicker"] for row in record["rows"] for which in ("forward", "backward")]
    assert sum(waste) / len(waste) < 1.05


def test_large_scores_keep_weights_at_most_one():
    q, k, v, dout, _ = drawn(3, 1, 4, 150, 150, 16, torch.float32)
    for scale in (1e4, 1e7, 1e10):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = sparse_attention(*leaves, Local(30), scale=scale)
        dv = torch.autograd.grad(out, leaves, dout)[2]
        assert bool((dv.abs().sum(2) <= 1.001 * dout.abs().sum(2)).all())
