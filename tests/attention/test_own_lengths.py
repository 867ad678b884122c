"""Both ways, a pattern that follows from the length is that of each sequence's own length, whatever pads it.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import BACKENDS_HERE, interpreting
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from longspan import own_lengths, sparse_attention
from longspan.patterns import BigBird, Local, PerHead, Random, Without
from longspan_kernels.errors import BackendError

INTERPRETED = pytest.mark.skipif("triton" not in BACKENDS_HERE, reason="Triton is not there to be interpreted")
T, H = 96, 4
PATTERNS = {
    "globals at the end": BigBird(16, 1, 0, 2),
    "draws": BigBird(16, 1, 1, 2, seed=3),
    "random": Random(2, 16),
    "two block sizes": BigBird(16, 1, 0, 2) | Random(1, 24),
    "intersection": BigBird(16, 1, 1, 2) & Local(60),
    "without": Without(BigBird(16, 3, 1, 2), Local(3)),
    "one a head": PerHead([Local(9), BigBird(16, 1, 0, 2), Random(1, 16), BigBird(8, 1, 0, 3)]),
}
LENGTHS = torch.tensor([96, 80, 81, 1, 0, 33, 1 << 40, -3, 80])


def tensors(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(len(LENGTHS), heads, T, 16, generator=g, dtype=dtype) for heads in (H, 2, 2)]


def by_hand(q, k, v, pattern, bias=None):
    """The definition for each sequence alone: out [B, H, T, D], and lse [B, H, T]."""
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:3], float("-inf"))
    for b, n in enumerate(LENGTHS.clamp(0, T).tolist()):
        keys, values = (x[b, :, :n].repeat_interleave(2, 0) for x in (k, v))
        scores = q[b, :, :n] @ keys.transpose(-1, -2) / 4.0
        if bias is not None:
            block = torch.arange(n) // 16
            scores = scores + bias[:, block][:, :, block]
        scores = scores.masked_fill(~pattern.mask(n, heads=H), float("-inf"))
        rows = (scores > float("-inf")).any(-1)
        weights = scores.masked_fill(~rows[..., None], 0.0).softmax(-1).masked_fill(~rows[..., None], 0.0)
        out = out.index_put((torch.tensor(b), torch.arange(H)[:, None], torch.arange(n)), weights @ values)
        lse = lse.index_put((torch.tensor(b), torch.arange(H)[:, None], torch.arange(n)), scores.logsumexp(-1))
    return out, lse


@pytest.mark.parametrize("backend", ["auto", "dense", "blocked"])
@pytest.mark.parametrize("name", PATTERNS)
def test_each_sequence_has_the_pattern_of_its_own_length(name, backend):
    leaves, pattern = [x.requires_grad_() for x in tensors()], PATTERNS[name]
    out, lse = sparse_attention(*leaves, pattern, lengths=LENGTHS, return_lse=True, backend=backend)
    right, right_lse = by_hand(*leaves, pattern)
    torch.testing.assert_close(out, right)
    torch.testing.assert_close(lse, right_lse)
    g = torch.randn(out.shape, dtype=out.dtype)
    for got, own in zip(*(torch.autograd.grad(x, leaves, g) for x in (out, right)), strict=True):
        torch.testing.assert_close(got, own)


def test_padding_moves_nothing_and_segments_and_pairs_are_cut_with_it():
    q, k, v = tensors(torch.float32)
    pattern, segments = PATTERNS["draws"], (torch.arange(T) // 30).expand(len(LENGTHS), T)
    call = {"lengths": (LENGTHS, LENGTHS), "segments": segments}
    out = sparse_attention(q, k, v, pattern, **call)
    assert isinstance(out, torch.Tensor)
    for b, n in enumerate(LENGTHS.clamp(0, T).tolist()):
        alone = sparse_attention(*(x[b : b + 1, :, :n] for x in (q, k, v)), pattern, segments=segments[:1, :n])
        torch.testing.assert_close(out[b : b + 1, :, :n], alone, atol=1e-5, rtol=1e-5)
        assert not out[b, :, n:].any()


def test_a_block_bias_and_its_gradient():
    leaves, pattern = [x.requires_grad_() for x in tensors()], PATTERNS["draws"]
    bias = torch.randn(H, 6, 6, dtype=torch.float64, requires_grad=True)
    out = sparse_attention(*leaves, pattern, lengths=LENGTHS, block_bias=bias)
    right, _ = by_hand(*leaves, pattern, bias)
    torch.testing.assert_close(out, right)
    g = torch.randn(right.shape, dtype=right.dtype)
    torch.testing.assert_close(*(torch.autograd.grad(x, bias, g)[0] for x in (out, right)))


def test_where_queries_and_keys_differ_positions_follow_from_the_keys_and_so_does_the_pattern():
    q, k, v = tensors()
    pattern, few = PATTERNS["draws"], q[:, :, -40:]
    lengths = (torch.full((len(LENGTHS),), 40), LENGTHS)
    out = sparse_attention(few, k, v, pattern, lengths=lengths)
    mask = pattern.mask(40, T, heads=H) & (torch.arange(T) < LENGTHS[:, None])[:, None, None]
    scores = (few @ k.repeat_interleave(2, 1).transpose(-1, -2) / 4.0).masked_fill(~mask, float("-inf"))
    right = torch.nan_to_num(scores.softmax(-1)) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(out, right)


def test_shapes_without_numbers_and_no_sequences():
    with FakeTensorMode():
        q = torch.empty(2, H, T, 16)
        assert sparse_attention(q, q, q, PATTERNS["draws"], lengths=torch.empty(2, dtype=torch.int64)).shape == q.shape
    q = torch.empty(2, H, T, 16, device="meta")
    assert sparse_attention(q, q, q, PATTERNS["draws"], lengths=torch.tensor([3, 90])).shape == q.shape
    q = torch.empty(0, H, T, 16)
    assert sparse_attention(q, q, q, PATTERNS["draws"], lengths=torch.empty(0, dtype=torch.int64)).shape == q.shape


def test_compiled_code_takes_lengths_of_any_numbers():
    q, k, v = tensors(torch.float32)
    compiled = torch.compile(
        lambda q, k, v, lengths: sparse_attention(q * 2, k, v, PATTERNS["draws"], lengths=lengths), backend="aot_eager"
    )
    for lengths in (LENGTHS, LENGTHS.flip(0)):
        eager = sparse_attention(q * 2, k, v, PATTERNS["draws"], lengths=lengths)
        torch.testing.assert_close(compiled(q, k, v, lengths), eager)


def test_a_length_step_is_the_tokens_within_which_a_pattern_stays():
    for pattern in PATTERNS.values():
        step = pattern.length_step(False)
        assert step and not pattern.length_step(True)
        for length in (1, step - 1, step + 1, 70):
            wider = -(-length // step) * step
            assert pattern.mask(length, heads=H).equal(pattern.mask(wider, heads=H)[:, :length, :length])
    assert not (Local(3) | BigBird(16, 3, 0, 1)).depends_on_length(False)


def test_torch_func_maps_over_lengths():
    q, k, v = tensors()
    pattern, lengths = PATTERNS["draws"], torch.stack([LENGTHS, LENGTHS.flip(0), LENGTHS.roll(1)], 1)

    def call(q, lengths):
        return sparse_attention(q, k, v, pattern, lengths=(lengths, LENGTHS), return_lse=True)

    out, lse = torch.func.vmap(call, in_dims=(None, 1))(q, lengths)
    gradient = torch.func.vmap(torch.func.grad(lambda q, lengths: call(q, lengths)[0].square().sum()), in_dims=(None, 1))(
        q, lengths
    )
    for number, own in enumerate(lengths.unbind(1)):
        leaf = q.clone().requires_grad_()
        right, right_lse = call(leaf, own)
        torch.testing.assert_close(out[number], right)
        torch.testing.assert_close(lse[number], right_lse)
        torch.testing.assert_close(gradient[number], torch.autograd.grad(right.square().sum(), leaf)[0])


class Attention(torch.nn.Module):
    def __init__(self, pattern):
        super().__init__()
        self.pattern = pattern

    def forward(self, q, k, v, lengths):
        return sparse_attention(q, k, v, self.pattern, lengths=lengths)


@pytest.mark.parametrize("trace", ["export", "real", "fake", "symbolic"])
def test_no_graph_is_traced_that_would_keep_the_lengths_of_its_example(trace):
    given = (*tensors(torch.float32), LENGTHS)
    with pytest.raises(BackendError, match=r"while a graph is traced.*give no lengths"):
        if trace == "export":
            torch.export.export(Attention(PATTERNS["two block sizes"]), given)
        else:
            make_fx(Attention(PATTERNS["two block sizes"]), tracing_mode=trace)(*given)


@pytest.mark.parametrize(
    ("trace", "name"),
    [
        ("compile", "draws"),
        ("export", "draws"),
        ("export", "random"),
        ("real", "random"),
        ("fake", "draws"),
        ("symbolic", "draws"),
    ],
)
def test_traced_graphs_of_whole_blocks_follow_other_lengths(trace, name):
    given, own = tensors(torch.float32), Attention(PATTERNS[name])
    if trace == "compile":
        traced = torch.compile(own, fullgraph=True, backend="aot_eager", dynamic=True)
    elif trace == "export":
        traced = torch.export.export(own, (*given, LENGTHS)).module()
    else:
        traced = make_fx(own, tracing_mode=trace)(*given, LENGTHS)
    for lengths in (LENGTHS, LENGTHS.flip(0), torch.full_like(LENGTHS, 40)):
        torch.testing.assert_close(traced(*given, lengths), own(*given, lengths), atol=1e-5, rtol=1e-5)


QUICK = ("tiles are blocks", "three tiles a block", "no tiles")
LISTED = {
    "tiles are blocks": (BigBird(16, 1, 1, 3, seed=5), 96),
    "two tiles a block": (BigBird(64, 1, 1, 1), 150),
    "three tiles a block": (BigBird(48, 1, 1, 0), 110),
    "no draws": (BigBird(32, 3, 0, 5), 130),
    "more draws than blocks": (Random(9, 32), 140),
    "no tiles": (BigBird(24, 1, 1, 2), 100),
}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in LISTED],
)
@INTERPRETED
@interpreting()
def test_lists_that_a_device_makes(name):
    """In kernels each sequence has lists of its own, where blocks are made of whole tiles."""
    pattern, length = LISTED[name]
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, heads, length, 16, generator=g).requires_grad_() for heads in (4, 2, 2))
    lengths, segments = torch.tensor([length, 1, length // 2, 0]), torch.arange(length).expand(4, length) // 30
    calls = [{"lengths": lengths}, {"lengths": (lengths, lengths.flip(0)), "segments": segments}]
    listed = own_lengths._listed(q, pattern, (lengths, lengths), "triton", False)
    assert (listed is None) == (name == "no tiles")
    if listed is None:
        return
    listed.check_values()
    for call in calls:
        out, lse = sparse_attention(q, k, v, pattern, **call, return_lse=True, backend="triton")
        right, right_lse = sparse_attention(q, k, v, pattern, **call, return_lse=True, backend="dense")
        torch.testing.assert_close(out, right, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(lse, right_lse, atol=2e-5, rtol=2e-5)
        weight = torch.randn(out.shape, generator=g)
        for got, own in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, right)), strict=True):
            torch.testing.assert_close(got, own, atol=1e-4, rtol=1e-4)


@INTERPRETED
@interpreting()
def test_lists_serve_gradients_of_gradients():
    q, k, v = (x.requires_grad_() for x in tensors(torch.float32))

    def second(backend):
        out = sparse_attention(q, k, v, PATTERNS["draws"], lengths=LENGTHS, backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (q, k, v))

    for got, right in zip(second("triton"), second("dense"), strict=True):
        torch.testing.assert_close(got, right, atol=1e-4, rtol=1e-4)


@INTERPRETED
@interpreting()
def test_lists_are_kept_until_lengths_change():
    q, k, v = tensors(torch.float32)
    pattern, lengths = PATTERNS["draws"], torch.tensor([96, 50, 33, 20, 1, 2, 3, 4, 5])

    def call():
        return sparse_attention(q, k, v, pattern, lengths=lengths, backend="triton")

    with torch.inference_mode():
        call()
    kept = own_lengths._kept.of(lengths)
    call()
    assert len(kept) == 1 and own_lengths._kept.of(lengths) == kept
    lengths[1] = 90
    torch.testing.assert_close(
        call(), sparse_attention(q, k, v, pattern, lengths=lengths, backend="dense"), atol=1e-5, rtol=1e-5
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 4), st.integers(0, 2), st.integers(0, 5), st.integers(0, 9), st.integers(1, 4))
def test_kept_blocks_are_those_of_the_mask(most, randoms, side, globals_, seed, heads):
    counts = torch.arange(1, most + 1)
    for pattern in (BigBird(3, 2 * side + 1, randoms, globals_, seed), Random(randoms + 1, 3, seed)):
        kept = pattern.kept_blocks(counts, most, heads).expand(-1, heads, -1, -1)
        for row, n in enumerate(counts.tolist()):
            blocks = pattern.mask(3 * n - 1, heads=heads)[:, ::3, ::3]
            assert kept[row, :, :n, :n].equal(blocks)
            assert not kept[row, :, n:].any() and not kept[row, :, :, n:].any()
