"""Patterns and calls at the edges of what their settings allow: each of these once broke."""

import pytest
import torch

from longspan import sparse_attention
from longspan.config.errors import CallError
from longspan.patterns import BigBird, BlockTable, Fixed, Full, Global, Local, PatternError, PerHead, Random, Strided
from longspan_kernels.block_sparse.compiler import compile_layout
from longspan_kernels.block_sparse.layout import DeviceLayout
from longspan_kernels.errors import KernelError

torch.set_num_threads(1)


def test_blocks_far_longer_than_the_sequence_are_one_block():
    for pattern in (Random(3, 1 << 40), BigBird(1 << 40), BlockTable(torch.ones(1, 1), 1 << 40)):
        for causal in (False, True):
            assert pattern.live_pairs(70, causal=causal) == (70 * 71 // 2 if causal else 70 * 70)


def test_large_blocks_are_spread_over_tiles_without_a_loop_over_their_area():
    # 1024 * 1024 tiles of 64 fill each pair of blocks: a step of Python for each would take a minute
    table = torch.zeros(2, 2, dtype=torch.bool)
    table[1, 0] = True
    assert BlockTable(table, 1 << 16).live_pairs(1 << 17) == 1 << 32


def test_a_bias_of_minus_infinity_closes_blocks_and_leaves_no_nan():
    torch.manual_seed(0)
    pattern, bias = BigBird(16, 3, 1, 1), torch.zeros(2, 6, 6)
    bias[:, 2] = bias[:, 4, 4] = -torch.inf  # every block of a row, and one block of another
    closed = bias.isinf().repeat_interleave(16, 1).repeat_interleave(16, 2)
    q, k, v = (torch.randn(1, 2, 96, 16, requires_grad=True) for _ in range(3))
    weights = q @ k.transpose(-1, -2) / 4
    weights = weights.masked_fill(closed | ~pattern.mask(96, heads=2), -torch.inf)
    right = torch.nan_to_num(torch.softmax(weights, -1)) @ v
    for backend in ("dense", "blocked"):
        gate = bias.clone().requires_grad_()
        out, lse = sparse_attention(q, k, v, pattern, block_bias=gate, return_lse=True, backend=backend)
        torch.testing.assert_close(out, right)
        assert torch.equal(lse.isinf(), closed.all(-1)[None] | (weights == -torch.inf).all(-1))
        for gradient in torch.autograd.grad(out.square().sum(), (q, k, v, gate)):
            assert gradient.isfinite().all()


def test_a_scale_that_would_lose_its_gradient_is_refused():
    q = torch.randn(1, 1, 8, 16)
    with pytest.raises(TypeError, match=r"scale is a Tensor.*multiply q"):
        sparse_attention(q, q, q, Full(), scale=torch.tensor(0.3, requires_grad=True))
    with pytest.raises(CallError, match="scale=nan"):
        sparse_attention(q, q, q, Full(), scale=float("nan"))
    with pytest.raises(TypeError, match="dropout_p is a str"):
        sparse_attention(q, q, q, Full(), dropout_p="0.1")


def test_a_pattern_may_be_made_inside_a_compiled_function():
    torch._dynamo.reset()

    def attend(q):
        own = Strided(11) | Local(13)  # names that no other test has registered
        return sparse_attention(q, q, q, own & PerHead([Local(29), BigBird(8, 3, 1, 1, seed=91)]))

    q = torch.randn(1, 2, 40, 16)
    out = torch.compile(attend, fullgraph=True, backend="eager")(q)
    torch.testing.assert_close(out, attend(q))


@pytest.mark.parametrize(
    "make", [lambda n: Local(n), lambda n: Local(4, n), lambda n: Strided(n), lambda n: Fixed(n, 3), lambda n: Global(first=n)]
)
def test_numbers_past_any_sequence_are_taken_or_refused_by_name(make):
    assert make(1 << 40).mask(9).shape == (1, 9, 9)
    with pytest.raises(PatternError, match=f"= {10**25} is above"):
        make(10**25)


def test_a_long_reach_is_the_whole_past():
    assert torch.equal(Local(1 << 40, 1 << 40).mask(9, causal=True), torch.eye(9, dtype=torch.bool)[None])
    assert Local(1 << 40).live_pairs(9) == 81


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.tensor([[[[0, 3], [1, 0], [2, 0]]]])}, "index holds 3; give 0 to 2"),
        ({"index": torch.tensor([[[[-1, 0], [1, 0], [2, 0]]]])}, "index holds -1"),
        ({"index": torch.tensor([[[[1, 1], [1, 0], [2, 0]]]])}, "index lists a key block twice"),
        ({"count": torch.tensor([[[3, 1, 1]]])}, "count holds 3; give 0 to 2"),
        ({"count": torch.tensor([[[-1, 1, 1]]])}, "count holds -1"),
        ({"k_order": torch.arange(48)[None, None]}, "k_order holds 40; give -1 to 39"),
        ({"index": torch.zeros(1, 1, 3, 2)}, "index is torch.float32"),
        ({"index": [[[[0, 1]] * 3]]}, "index is a list"),
        ({"k_order": torch.zeros(1, 1, 0, dtype=torch.int64)}, "k_order has shape"),
        ({"block_q": 0}, "block_q = 0"),
    ],
)
def test_what_a_layout_made_at_run_time_cannot_mean_is_named(change, message):
    right = {"index": torch.tensor([[[[0, 1], [1, -9], [2, 99]]]]), "count": torch.tensor([[[2, 1, 1]]])}
    right |= {"block_q": 16, "block_k": 16, "q_len": 40, "k_len": 40}
    q = torch.randn(1, 2, 40, 16)
    assert sparse_attention(q, q, q, DeviceLayout(**right)).shape == q.shape
    with pytest.raises(KernelError, match=message):
        sparse_attention(q, q, q, DeviceLayout(**(right | change)))


@pytest.mark.parametrize("pattern", [Full(), Fixed(128, 32), Full() | Global(first=9), BlockTable(torch.ones(1, 1), 1 << 20)])
def test_a_layout_of_too_many_tiles_is_refused_before_it_takes_the_memory(pattern):
    length = 1 << 20
    with pytest.raises(KernelError, match=r"reaches into [0-9,]+ tiles .* at most 40,000,000"):
        compile_layout(pattern.head_rules(length, length, 1, False), length, length, 1)


def test_globals_within_a_window_list_the_window_alone():
    length = 1 << 20  # half the keys are global: beside every query that would be 134 million tiles
    assert (Global(first=length // 2) & Local(3)).live_pairs(length) == 3 * (length // 2)


def test_a_bias_or_a_mask_that_cannot_be_is_named():
    q = torch.randn(1, 2, 40, 16)
    with pytest.raises(TypeError, match="block_bias is a list"):
        sparse_attention(q, q, q, BigBird(16), block_bias=[[[0.0]]])
    with pytest.raises(CallError, match=r"block_bias is torch\.int64"):
        sparse_attention(q, q, q, BigBird(16), block_bias=torch.zeros(2, 3, 3, dtype=torch.int64))
    with pytest.raises(PatternError, match="count by live_pairs"):
        Local(5).mask(1_000_000)
