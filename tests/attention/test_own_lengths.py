"""Both ways, a pattern that follows from the length is that of each sequence's own length, whatever pads it.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from longspan import sparse_attention
from longspan.patterns import BigBird, Local, PerHead, Random, Without
from longspan_kernels.errors import BackendError

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


@pytest.mark.parametrize("trace", ["export", "real", "fake", "symbolic"])
def test_no_graph_is_traced_that_would_keep_the_lengths_of_its_example(trace):
    q, k, v = tensors(torch.float32)

    class Attention(torch.nn.Module):
        def forward(self, q, lengths):
            return sparse_attention(q, k, v, PATTERNS["draws"], lengths=lengths)

    with pytest.raises(BackendError, match=r"while a graph is traced.*give no lengths"):
        if trace == "export":
            torch.export.export(Attention(), (q, LENGTHS))
        else:
            make_fx(Attention(), tracing_mode=trace)(q, LENGTHS)
