"""`sparse_attention`: its arguments, checked with named errors, and its agreement with dense attention."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan import sparse_attention
from longspan.config.errors import CallError
from longspan.patterns import BigBird, BlockTable, Fixed, Full, Global, Local, PerHead, Random, Strided

torch.set_num_threads(1)
CALLS = settings(max_examples=40, deadline=None)


def make(q_len, k_len=None, heads=2, kv_heads=2, width=16, batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k_len = q_len if k_len is None else k_len
    shapes = [(batch, heads, q_len, width), *[(batch, kv_heads, k_len, width)] * 2]
    return [torch.randn(s, generator=generator, dtype=dtype, requires_grad=True) for s in shapes]


PATTERNS = st.sampled_from(
    [
        Full(),
        Local(7),
        Local(3, 4),
        Strided(5),
        Fixed(8, 2),
        Global(first=2),
        Random(2, 16),
        BigBird(16, 1, 1, 1),
        Local(4) | Strided(9),
        Strided(2) & Local(20),
        PerHead([Local(5), BigBird(16, 3, 1, 2)]),
    ]
)


@CALLS
@given(PATTERNS, st.integers(1, 90), st.integers(0, 40), st.booleans(), st.sampled_from([16, 24, 40]))
def test_agrees_with_dense_attention(pattern, q_len, more, causal, width):
    q, k, v = make(q_len, q_len + more, width=width)
    mask = pattern.mask(q_len, q_len + more, heads=2, causal=causal)
    dead = ~mask.any(-1)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | dead[..., None]).masked_fill(dead[..., None], 0.0)
    out, lse = sparse_attention(q, k, v, pattern, causal=causal, return_lse=True)
    torch.testing.assert_close(out, expected)
    scores = (q @ k.transpose(-1, -2) / width**0.5).masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    grad = torch.randn_like(out)
    for ours, theirs in zip(*(torch.autograd.grad(o, (q, k, v), grad) for o in (out, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_more_queries_than_keys():
    q, k, v = make(30, 20)
    mask = Local(9).mask(30, 20)
    out = sparse_attention(q, k, v, Local(9))
    assert out[:, :, :6].abs().max() == 0  # i = r - 10 sees keys from i + 4 < 0 on
    torch.testing.assert_close(out[:, :, 6:], F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, :, 6:])


def test_pairs_of_lengths_and_segments():
    q, k, v = make(12, 40)
    q_lengths, k_lengths = torch.tensor([12, 5]), torch.tensor([40, 33])
    out = sparse_attention(q, k, v, Full(), lengths=(q_lengths, k_lengths))
    assert out[1, :, 5:].abs().max() == 0
    torch.testing.assert_close(out[1, :, :5], F.scaled_dot_product_attention(q, k[:, :, :33], v[:, :, :33])[1, :, :5])
    only_keys = sparse_attention(q, k, v, Full(), lengths=(None, k_lengths))
    torch.testing.assert_close(only_keys[1, :, :5], out[1, :, :5])
    q_segments, k_segments = torch.arange(12).expand(2, 12) // 4, torch.arange(40).expand(2, 40) % 4
    mask = q_segments[0][:, None] == k_segments[0][None, :]
    out = sparse_attention(q, k, v, Full(), segments=(q_segments, k_segments))
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_scale_and_grouped_heads():
    q, k, v = make(50, heads=4, kv_heads=1)
    mask = BigBird(16).mask(50, heads=4)
    expected = F.scaled_dot_product_attention(q, k.expand(2, 4, 50, 16), v.expand(2, 4, 50, 16), attn_mask=mask, scale=0.3)
    torch.testing.assert_close(sparse_attention(q, k, v, BigBird(16), scale=0.3), expected)


@pytest.mark.parametrize("pattern", [BigBird(16, 1, 1, 1), BlockTable(torch.tril(torch.ones(4, 4)).bool(), 16)])
def test_block_bias_is_added_to_the_scores_of_its_blocks(pattern):
    q, k, v = make(50)
    bias = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.arange(50) // 16
    added = bias[:, rows][:, :, rows].masked_fill(~pattern.mask(50, heads=2, causal=True), float("-inf"))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=added)
    out = sparse_attention(q, k, v, pattern, causal=True, block_bias=bias)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad(o, bias, grad)[0] for o in (out, expected)))


def test_backends_agree():
    q, k, v = make(70, dtype=torch.float32)
    dense, blocked = (sparse_attention(q, k, v, BigBird(16), causal=True, backend=b) for b in ("dense", "blocked"))
    torch.testing.assert_close(dense, blocked, atol=1e-5, rtol=1e-5)


def call(change=lambda q, k, v: (q, k, v), pattern=None, **keywords):
    return lambda: sparse_attention(*change(*make(20)), Full() if pattern is None else pattern, **keywords)


WRONG = [
    (call(lambda q, k, v: (q[0], k, v)), r"q has shape \(2, 20, 16\)"),
    (call(lambda q, k, v: (q, k, v[:, :, :5])), r"k \(2, 2, 20, 16\) and v \(2, 2, 5, 16\) differ"),
    (call(lambda q, k, v: (q[:1], k, v)), "q has a batch of 1 and k of 2"),
    (call(lambda q, k, v: (q, k[..., :8], v[..., :8])), "q has width 16 and k 8"),
    (call(lambda q, k, v: (q[..., :8], k[..., :8], v[..., :8])), "head width D = 8 is not served; give 16 to 256"),
    (call(lambda q, k, v: (q[:, :1], k, v)), "q has 1 heads and k, v have 2"),
    (call(lambda q, k, v: (q.float(), k, v)), "q is torch.float32, k torch.float64"),
    (call(lambda q, k, v: (q.long(), k, v)), "q is torch.int64"),
    (call(lambda q, k, v: (q, k[:, :, :9], v[:, :, :9]), causal=True), "causal=True with 20 queries and 9 keys"),
    (
        call(lambda q, k, v: (q, k[:, :, :9], v[:, :, :9]), lengths=torch.tensor([9, 9])),
        "lengths is one tensor, but",
    ),
    (
        call(lambda q, k, v: (q, k[:, :, :9], v[:, :, :9]), segments=torch.zeros(2, 20).long()),
        r"give a pair \(q_segments, k_segments\)",
    ),
    (call(lengths=torch.tensor([9])), r"lengths: its q side has shape \(1,\); give \(2,\)"),
    (call(lengths=torch.tensor([9.0, 1.0])), "lengths: its q side is torch.float32; give whole numbers"),
    (call(segments=torch.zeros(2, 9).long()), r"segments: its q side has shape \(2, 9\); give \(2, 20\)"),
    (call(segments=(torch.zeros(2, 20).long(), None)), "segments lacks one of its pair"),
    (call(dropout_p=1.0), "dropout_p=1.0"),
    (call(dropout_p=-0.1), "dropout_p=-0.1"),
    (call(backend="cuda"), "backend='cuda' is unknown; choose one of auto, triton, blocked, dense"),
    (call(pattern=PerHead([Full()] * 3)), "pattern is made for 3 heads but q has 2"),
    (call(pattern=Local(4), block_bias=torch.zeros(1, 1, 1)), "block_bias needs a pattern made of blocks"),
    (call(pattern=BigBird(16), block_bias=torch.zeros(1, 1, 1)), r"block_bias has shape \(1, 1, 1\); give \[2 or 1, 2, 2\]"),
    (call(pattern=BlockTable(torch.ones(1, 1), 16)), "too small for 20 tokens"),
    (call(backend="triton"), "triton"),
]


@pytest.mark.parametrize(("run", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (call(pattern="full"), "pattern is a str; give one of longspan.patterns"),
        (call(lengths=[5, 6]), "lengths: its q side is 5; give a tensor"),
        (call(lengths=5), "lengths is 5; give a tensor, or a pair"),
        (call(lambda q, k, v: (q, None, v)), "k is a NoneType"),
    ],
)
def test_wrong_types_are_named(run, message):
    with pytest.raises(TypeError, match=message):
        run()


def test_named_errors_are_of_the_projects_own_types():
    with pytest.raises(CallError):
        call(dropout_p=2.0)()
