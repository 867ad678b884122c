"""`backend="flash"`: what FlashAttention-4 is asked for, compared with the definition, and what is refused before it is asked.

The package needs a GPU; a dense function by its signature and its rules stands in for it.
"""

from __future__ import annotations

import sys

import flash_attention_4
import pytest
import torch

import longspan.attention as variants
from longspan.config.errors import CallError, ConfigError
from longspan.functional import sparse_attention
from longspan.patterns import BigBird, Full, Global, Local, Longformer, PerHead, Strided
from longspan_kernels.block_sparse import DeviceLayout, flash, what_runs
from longspan_kernels.errors import BackendError
from longspan_kernels.selected import selected_attention

H, D = 4, 16
PLACE = {"heads": H, "head_dim": D, "causal": False}


@pytest.fixture
def here(monkeypatch):
    """FlashAttention-4 on the CPU, in float64 too; the keywords of its calls."""
    monkeypatch.setattr(flash, "DEVICE", "cpu")
    monkeypatch.setattr(flash, "DTYPES", (*flash.DTYPES, torch.float64))
    return flash_attention_4.install(monkeypatch)


def tensors(q_len=24, k_len=None, kv_heads=2, width=D, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    sizes = ((H, q_len), *[(kv_heads, k_len or q_len)] * 2)
    return [torch.randn(2, *size, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


NONE, BEFORE = (False, (None, None)), (True, (None, None))
SERVED = [
    (Full(), False, (24, 24), NONE),
    (Full(), True, (24, 24), BEFORE),
    (Full(), True, (9, 24), BEFORE),
    (Full(), False, (9, 24), NONE),
    (Full(), False, (24, 9), NONE),
    (Local(5), False, (24, 24), (False, (2, 2))),
    (Local(6), False, (24, 24), (False, (3, 3))),
    (Local(5), True, (24, 24), (False, (4, 0))),
    (Local(6), True, (24, 24), (False, (5, 0))),
    (Local(6), True, (9, 24), (False, (5, 0))),
    (Local(1), False, (24, 24), (False, (0, 0))),
    (Local(1), True, (24, 24), (False, (0, 0))),
    (Local(10**12), False, (24, 24), (False, (24, 24))),
    (Local(10**12), True, (9, 24), (False, (24, 0))),
    (PerHead([Local(6)] * H), True, (24, 24), (False, (5, 0))),
]


@pytest.mark.parametrize(("pattern", "causal", "lengths", "expected"), SERVED, ids=str)
def test_output_lse_and_gradients_are_those_of_the_definition(here, pattern, causal, lengths, expected):
    results = []
    for backend in ("dense", "flash"):
        q, k, v = tensors(*lengths)
        out, lse = sparse_attention(q, k, v, pattern, causal=causal, scale=0.3, return_lse=True, backend=backend)
        total = (out * out.detach().cos()).sum() + lse.sin().sum()
        results.append((out, lse, *torch.autograd.grad(total, (q, k, v))))
    for right, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, right, atol=1e-12, rtol=1e-12)
    assert [(call["causal"], call["window_size"]) for call in here] == [expected]
    assert flash.visited_pairs(pattern.key, *lengths, H, causal) == int(pattern.mask(*lengths, heads=H, causal=causal).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_byte_dtypes_and_the_default_scale(here, dtype):
    q, k, v = tensors(dtype=dtype)
    out = sparse_attention(q, k, v, Local(7), causal=True, backend="flash")
    right = sparse_attention(q, k, v, Local(7), causal=True, backend="dense")
    assert out.dtype == dtype and here == [{"causal": False, "window_size": (6, 0), "softmax_scale": D**-0.5}]
    torch.testing.assert_close(out, right, atol=2e-2, rtol=2e-2)


def test_autocast_casts_what_it_is_given(here):
    q, k, v = tensors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse_attention(q, k, v, Full(), backend="flash").dtype == torch.bfloat16


def test_expanded_gradients_reach_it_as_memory(here, monkeypatch):
    strides = []

    def noting(*tensors, **keywords):
        out, lse = flash_attention_4.flash_attn_func(*tensors, **keywords)
        out.register_hook(lambda grad: strides.append(grad.stride()))
        return out, lse

    noting.__wrapped__ = flash_attention_4.flash_attn_func
    flash_attention_4.install(monkeypatch, noting)
    results = []
    for backend in ("dense", "flash"):
        q, k, v = tensors()
        results.append(
            torch.autograd.grad(sparse_attention(q, k, v, Full(), backend=backend).mean(2).square().sum(), (q, k, v))
        )
    torch.testing.assert_close(*results, atol=1e-12, rtol=1e-12)
    assert len(strides) == 1 and 0 not in strides[0]


def bias():
    return {"block_bias": torch.zeros(1, 2, 2)}


LENGTHS, SEGMENTS = torch.tensor([24, 11]), torch.zeros(2, 24, dtype=torch.int64)


@pytest.mark.parametrize(
    ("pattern", "call", "tensor", "reason"),
    [
        (Strided(3), {}, {}, "has flags for all pairs, all keys before, or one window for all heads, not for Strided"),
        (Local(5, dilation=2), {}, {}, "not for Local"),
        (Local(5) | Global(first=2), {}, {}, "has flags for"),
        (BigBird(8), {}, {}, "not for BigBird"),
        (Longformer(4, (0,)), {}, {}, "has flags for"),
        (PerHead([Local(4), Local(4), Local(6), Local(4)]), {}, {}, "one window for all heads"),
        (PerHead([Local(4), Local(4), Strided(2), Local(4)]), {}, {}, "one window for all heads"),
        (Local(4), {}, {"q_len": 9, "k_len": 24}, "a window both ways needs as many keys as queries, not 24 for 9"),
        (Local(4), {}, {"q_len": 24, "k_len": 9}, "a window both ways needs as many keys as queries, not 9 for 24"),
        (Local(1), {}, {"q_len": 24, "k_len": 9}, "some of 24 queries would have none of 9 keys"),
        (Full(), {"lengths": LENGTHS}, {}, "takes no lengths"),
        (Full(), {"lengths": (None, LENGTHS)}, {}, "takes no lengths"),
        (Full(), {"segments": SEGMENTS}, {}, "takes no segments"),
        (Full(), {"dropout_p": 0.1}, {}, "has no dropout, and dropout_p is 0.1"),
        (BigBird(16), bias(), {}, "takes no block_bias"),
        (Full(), {"scale": 0.0}, {}, "scale is above 0, not 0.0"),
        (Full(), {"scale": -1.0}, {}, "scale is above 0, not -1.0"),
        (Full(), {}, {"dtype": torch.float32}, "takes bfloat16 and float16, not torch.float32"),
        (Full(), {}, {"width": 20}, "head width divides by 8, which 20 does not"),
    ],
)
def test_calls_that_it_cannot_serve_say_why_and_what_serves_them(here, pattern, call, tensor, reason):
    q, k, v = tensors(**tensor)
    with pytest.raises(BackendError, match=f'backend="flash" cannot serve this call: .*{reason}.*; use backend="auto"'):
        sparse_attention(q, k, v, pattern, backend="flash", **call)
    assert not here


def test_pairs_that_are_chosen_at_run_time_are_refused(here):
    q, k, v = tensors()
    layout = DeviceLayout(torch.tensor([[[[0], [1]]]]), torch.tensor([[[1, 1]]]), 16, 16, 24, 24)
    picks = torch.zeros(2, H, 24, 1, dtype=torch.int64)
    for call in (
        lambda: sparse_attention(q, k, v, layout, backend="flash"),
        lambda: selected_attention(q, k, v, picks, 8, backend="flash"),
    ):
        with pytest.raises(BackendError, match=r'chosen at run time; use backend="auto"'):
            call()


def test_a_cpu_is_refused_before_the_package_is_looked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(BackendError, match=r'needs a CUDA device, not cpu; use backend="auto"'):
        sparse_attention(*tensors(dtype=torch.bfloat16), Full(), backend="flash")


def test_a_package_that_is_not_installed_is_named(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", None)
    with pytest.raises(BackendError, match='flash-attn-4 is not installed: pip install flash-attn-4, or backend="auto"'):
        sparse_attention(*tensors(), Full(), backend="flash")


def test_deterministic_gradients_are_asked_for_where_torch_is(here):
    torch.use_deterministic_algorithms(True)
    try:
        sparse_attention(*tensors(), Full(), backend="flash")
    finally:
        torch.use_deterministic_algorithms(False)
    sparse_attention(*tensors(), Full(), backend="flash")
    assert [call.get("deterministic") for call in here] == [True, None]


def test_a_version_without_what_is_asked_for_is_refused(here, monkeypatch):
    def older(q, k, v, softmax_scale=None, causal=False, window_size=(None, None)):
        return flash_attention_4.flash_attn_func(q, k, v, softmax_scale, causal, window_size)[0]

    flash_attention_4.install(monkeypatch, older)
    q, k, v = tensors()
    right = sparse_attention(q, k, v, Full(), backend="dense")
    torch.testing.assert_close(sparse_attention(q, k, v, Full(), backend="flash"), right)
    with pytest.raises(BackendError, match="that is installed takes no return_lse="):
        sparse_attention(q, k, v, Full(), return_lse=True, backend="flash")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with pytest.raises(BackendError, match="that is installed takes no deterministic="):
        sparse_attention(q, k, v, Full(), backend="flash")


@pytest.mark.parametrize(
    ("capability", "width", "deterministic", "return_lse", "with_backward", "without_backward"),
    [
        ((9, 0), 256, True, True, None, None),
        ((10, 0), 128, True, True, None, None),
        ((10, 0), 256, True, False, None, None),
        ((10, 0), 256, False, True, "no gradient at a head width of 256", None),
        ((10, 3), 192, False, False, "up to 128, or 256, not 192", "up to 128, or 256, not 192"),
        ((8, 0), 64, False, False, "no backward pass for compute capability 8.0", None),
        ((12, 0), 64, True, False, "cannot be the same each run", None),
        ((12, 0), 64, False, False, None, None),
    ],
)
def test_gpus_that_it_has_no_kernels_for(
    monkeypatch, capability, width, deterministic, return_lse, with_backward, without_backward
):
    monkeypatch.setattr(flash, "capability_of", lambda device: capability)
    for backward, expected in ((True, with_backward), (False, without_backward)):
        reason = flash.device_refuses(torch.empty(1, 1, 1, width), return_lse, backward, deterministic)
        assert reason is None if expected is None else expected in reason


def test_what_the_package_refuses_itself_names_another_backend(here, monkeypatch):
    def refusing(q, k, v, **keywords):
        raise AssertionError("Unsupported compute capability")

    refusing.__wrapped__ = flash_attention_4.flash_attn_func
    flash_attention_4.install(monkeypatch, refusing)
    with pytest.raises(BackendError, match=r'says .Unsupported compute capability.; use backend="auto"'):
        sparse_attention(*tensors(), Full(), backend="flash")


def test_gradients_of_gradients_and_transforms_are_refused(here):
    q, k, v = tensors()
    out, lse = sparse_attention(q, k, v, Full(), return_lse=True, backend="flash")
    for result in (out, lse):
        with pytest.raises(BackendError, match=r'create_graph=True: .*use backend="auto"'):
            torch.autograd.grad(result.sum(), q, create_graph=True, retain_graph=True)
        torch.autograd.grad(result.sum(), q, retain_graph=True)
    with pytest.raises(BackendError, match=r'has no rule for .*; use backend="dense"'):
        torch.func.grad(lambda q: sparse_attention(q, k, v, Full(), backend="flash").sum())(q)


def test_a_compiled_function_breaks_its_graph_there(here):
    def run(q, k, v):
        return sparse_attention(q * 2, k, v, Local(6), causal=True, backend="flash") + 1

    q, k, v = tensors()
    out = torch.compile(run, backend="eager")(q, k, v)
    torch.testing.assert_close(out, run(q, k, v))
    right = sparse_attention(q * 2, k, v, Local(6), causal=True, backend="dense") + 1
    results = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, right))
    torch.testing.assert_close(*results)


def test_nothing_to_attend_and_meta_tensors(here):
    q, k, v = tensors()
    out, lse = sparse_attention(q, k[:, :, :0], v[:, :, :0], Full(), return_lse=True, backend="flash")
    assert not out.any() and bool((lse == float("-inf")).all())
    meta = [x.detach().to("meta") for x in (q, k, v)]
    assert sparse_attention(*meta, Full(), backend="flash").shape == q.shape
    assert not here


@pytest.mark.parametrize("causal", [False, True])
def test_a_variant_runs_and_counts_as_with_other_backends(here, causal):
    place = PLACE | {"causal": causal, "kv_heads": 2}
    ours, right = (variants.local(window=6, backend=backend, **place) for backend in ("flash", "dense"))
    q, k, v = tensors()
    torch.testing.assert_close(ours(q, k, v), right(q, k, v))
    assert ours.cost(24) == right.cost(24)
    assert ours.ran(2, 24, torch.bfloat16, torch.device("cpu")) == ("flash", Local(6).live_pairs(24, heads=H, causal=causal))


def test_what_runs_of_a_pattern_without_flags_says_so():
    q = torch.empty(1, H, 24, D, dtype=torch.bfloat16)
    with pytest.raises(BackendError, match="not for Strided"):
        what_runs(q, q, Strided(3).key, False, "flash")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: variants.strided(stride=3, backend="flash", **PLACE),
            "attention.backend = 'flash': it has flags .* give auto",
        ),
        (lambda: variants.full(dropout=0.1, backend="flash", **PLACE), "attention.dropout = 0.1: FlashAttention-4 has none"),
        (lambda: variants.moba(block_size=16, top_k=2, backend="flash", **PLACE), "knows no pairs that are chosen at run time"),
        (lambda: variants.adaptive_span(max_length=64, backend="flash", **PLACE), "knows no spans that are learned; give auto"),
        (
            lambda: variants.learned(density=0.5, block_size=16, max_length=64, backend="flash", **PLACE),
            "knows no gates that are learned; give auto",
        ),
    ],
)
def test_variants_refuse_it_before_a_run_begins(make, reason):
    with pytest.raises(ConfigError, match=reason):
        make()


def test_an_unknown_backend_names_it_among_the_others():
    with pytest.raises(CallError, match="choose one of auto, triton, blocked, dense, flash"):
        sparse_attention(*tensors(), Full(), backend="flesh")
