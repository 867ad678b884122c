"""The Triton kernels, interpreted on the CPU, against the dense reference in float64: output, log-sum-exp, every gradient."""

import pytest
import torch
from drawn_rules import HEADS, Call, calls
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.block_sparse import attend
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.layout import DeviceLayout
from longspan_kernels.block_sparse.reference import reference_attention
from longspan_kernels.block_sparse.rules import And, Band, Congruent, Keys, KeysPeriodic, Or, Queries
from longspan_kernels.block_sparse.triton import schedule
from longspan_kernels.errors import BackendError

if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/gpu runs the compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

from longspan_kernels.block_sparse.triton.backward import triton_backward
from longspan_kernels.block_sparse.triton.forward import triton_forward

# Relative errors: float32 sums in another order; one rounding of the weights to float16 and one of the result.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def distance(a: torch.Tensor, b: torch.Tensor, summed: torch.Tensor | None = None) -> float:
    """|a - b| relative to |b|, or to a small size where b all but vanishes.

    Where b is what remains of terms that cancel, `summed` is their size: rounding is relative to it, not to the remainder.
    """
    a, b = a.detach().double(), b.detach()
    if not b.numel():
        return float(a.numel())
    size = b.norm() if summed is None else b.norm() + summed.norm()
    return float((a - b).norm() / (size + 1e-3 * b.numel() ** 0.5))


def check(call: Call, layout, dtype: torch.dtype, backward_layout=None, mask=None) -> None:
    """Compares with autograd through the reference on the values that the kernels see."""
    bias = call.extras.get("bias")
    leaves = [x.to(dtype).double().requires_grad_() for x in (call.q, call.k, call.v)]
    if bias is not None:
        leaves.append(bias.float().double().requires_grad_())
    extras = dict(call.extras) if bias is None else {**call.extras, "bias": leaves[3]}
    if mask is None:
        mask = call.mask
    out, lse = (torch.cat(x) for x in zip(*(_element(leaves, mask, extras, b) for b in range(len(call.q))), strict=True))
    dead = lse.isinf()
    # The same for the same call, so that a drawn failure comes back when it is run again.
    random = torch.Generator().manual_seed(0)
    dout, dlse = torch.randn(out.shape, generator=random).to(dtype), torch.randn(lse.shape, generator=random)
    alive = lse.masked_fill(dead, 0.0)
    total = (out * dout).sum() + (alive * dlse).sum()
    expected = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=bias is not None)
    summed = {}
    if bias is not None:
        # ds = p * (dp - delta + dlse): a block's terms weigh as much as its weights p times the size of the bracket's parts.
        parts = (out * dout).sum(-1).abs().detach() + dlse.abs()
        summed["dbias"] = torch.autograd.grad((alive * parts).sum(), leaves[3], allow_unused=True)[0]
    given_extras = dict(call.extras) if bias is None else {**call.extras, "bias": bias.float()}
    q, k, v = (x.to(dtype) for x in (call.q, call.k, call.v))
    got_out, got_lse = triton_forward(q, k, v, layout, Options(**given_extras))
    assert got_out.dtype == dtype and torch.equal(got_lse.isinf(), dead)
    got = triton_backward(dout, dlse, q, k, v, got_out, got_lse, backward_layout or layout, Options(**given_extras))
    results = [("out", got_out, out), ("lse", got_lse[~dead], lse[~dead])]
    results += zip(("dq", "dk", "dv", "dbias"), got, expected, strict=False)
    for name, a, b in results:
        b = torch.zeros_like(a).double() if b is None else b
        off = distance(a, b, summed.get(name))
        assert off < TOLERANCE[dtype], f"{name} is off by {off:.1e}"
    assert not got_out[dead].any() and (got[3] is None) == (bias is None)


def _element(leaves, mask, extras, b):
    """One batch element of the reference, whose mask may differ by element."""
    one = {name: x[b : b + 1] if name.endswith(("lengths", "segments")) else x for name, x in extras.items()}
    dropout = one.pop("dropout_p", 0.0)
    q, k, v = (x[b : b + 1] for x in leaves[:3])
    if not dropout:
        return reference_attention(q, k, v, mask[b] if mask.dim() == 4 else mask, **one)
    # The bits are keyed by the place in the whole batch.
    out, lse = reference_attention(*leaves[:3], mask, **extras)
    return out[b : b + 1], lse[b : b + 1]


@pytest.fixture(params=["whole", "cut"])
def cutting(request, monkeypatch):
    """Rows and columns whole, or cut into parts of one tile."""
    if request.param != "whole":
        monkeypatch.setattr(schedule, "SHORTEST_SPLIT", 1)


drawn = pytest.mark.parametrize("examples", [6, pytest.param(100, marks=pytest.mark.exhaustive)])
dtypes = st.sampled_from([torch.float32, torch.float16])
tiles = st.sampled_from([(16, 16), (16, 32), (32, 16)])


@drawn
def test_drawn_rules(cutting, examples):
    @settings(max_examples=examples)
    @given(calls(most=64, widths=(16, 24)), tiles, tiles, dtypes)
    def run(call, forward, backward, dtype):
        lengths = call.q.shape[2], call.k.shape[2]
        layouts = [
            compile_layout(call.groups, *lengths, HEADS, Tiling(*t, sizes=(16, 32), overhead=0)) for t in (forward, backward)
        ]
        check(call, layouts[0], dtype, layouts[1])

    run()


@drawn
def test_bias_by_block(cutting, examples):
    @settings(max_examples=examples)
    @given(calls(most=64, widths=(16,), bias=True), tiles)
    def run(call, tile):
        layout = compile_layout(call.groups, call.q.shape[2], call.k.shape[2], HEADS, Tiling(*tile, one_pass=True))
        check(call, layout, torch.float32)

    run()


@pytest.mark.parametrize(("q_len", "k_len"), [(64, 64), (45, 61)])
def test_a_bias_of_minus_infinity_closes_blocks(cutting, q_len, k_len):
    """Some blocks of a row, every block of a row, every block of a column, a whole head; what it closes gets gradient 0."""
    g = torch.Generator().manual_seed(0)
    call = example(Or(CAUSAL, Band(-9, 0)), q_len, k_len, 16, heads=4, key_heads=2)
    bias = torch.randn(4, 4, 4, generator=g)
    bias[0, 1, 0] = bias[1, 2] = bias[2, :, 1] = bias[3] = -torch.inf
    call.extras.update(bias=bias, bias_block=16)
    layout = compile_layout(call.groups, q_len, k_len, 4, Tiling(16, 16, one_pass=True))
    check(call, layout, torch.float32)
    out, lse = triton_forward(call.q, call.k, call.v, layout, Options(**call.extras))
    *_, dbias = triton_backward(
        torch.randn(out.shape, generator=g), None, call.q, call.k, call.v, out, lse, layout, Options(**call.extras)
    )
    assert lse[:, 3].isinf().all() and lse[:, 1].isinf().any() and not lse[:, 0].isinf().any()
    assert not dbias[bias.isinf()].any() and dbias[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", ["triton", "blocked"])
def test_a_bias_of_any_precision_is_added_as_scores_are(dtype, backend):
    from longspan.patterns import BigBird

    g = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(1, 2, 70, 16, generator=g) for _ in range(4))
    leaves = [q.requires_grad_(), k, v, torch.randn(2, 5, 5, generator=g).to(dtype).requires_grad_()]
    found = []
    for one in (backend, "dense"):
        out = attend(*leaves[:3], BigBird(16, 3, 1, 1).key, block_bias=leaves[3], bias_block=16, backend=one)
        found.append((out, *torch.autograd.grad(out, (leaves[0], leaves[3]), dout)))
    assert found[0][2].dtype == dtype
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4 if a.dtype.itemsize > 2 else 1e-2)


def example(rule, q_len: int, k_len: int, width: int, heads: int = HEADS, key_heads: int = HEADS, **extras) -> Call:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, t, width, generator=g) for h, t in ((heads, q_len), (key_heads, k_len), (key_heads, k_len)))
    i = torch.arange(q_len)[:, None] + (k_len - q_len)
    mask = rule.live(0, i, torch.arange(k_len)[None]).expand(heads, q_len, k_len)
    return Call([(tuple(range(heads)), rule)], q, k, v, mask, {"scale": 0.2, **extras})


CAUSAL = Band(0, None)


@pytest.mark.parametrize(
    "rule",
    [
        Or(Band(0, 9), And(Congruent(7), CAUSAL)),
        And(Or(Band(-3, 3), KeysPeriodic(16, 3)), CAUSAL),
        Or(Band(-5, 5), Keys([(0, 3)]), Queries([(0, 3), (40, 41)])),
        And(Band(0, None), Keys([(70, 80)])),
    ],
    ids=["residues", "gathered keys", "gathered queries", "nothing live"],
)
@pytest.mark.parametrize("width", [16, 40, 64, 80])
def test_orders_at_odd_widths(rule, width):
    call = example(rule, 53, 61, width)
    layout = compile_layout(call.groups, 53, 61, HEADS, Tiling(16, 16, sizes=(16,), overhead=0))
    check(call, layout, torch.float32)


def test_heads_that_share_keys_share_their_gradient():
    call = example(Or(Band(0, 20), And(Congruent(5), CAUSAL)), 45, 45, 16, heads=6, key_heads=2)
    check(call, compile_layout(call.groups, 45, 45, 6, Tiling(16, 16, sizes=(16,), overhead=0)), torch.float32)


def test_tokens_past_the_length_are_never_looked_at():
    call = example(Band(-9, 9), 40, 40, 16, q_lengths=torch.tensor([21]), k_lengths=torch.tensor([21]))
    layout = compile_layout(call.groups, 40, 40, HEADS, Tiling(16, 16))
    dirty = [x.clone() for x in (call.q, call.k, call.v)]
    for x in dirty:
        x[:, :, 21:] = float("nan")
    out, lse = triton_forward(*dirty, layout, Options(**call.extras))
    dout = torch.randn_like(out)
    grads = triton_backward(dout, None, *dirty, out, lse, layout, Options(**call.extras))
    clean, clean_lse = triton_forward(call.q, call.k, call.v, layout, Options(**call.extras))
    expected = triton_backward(dout, None, call.q, call.k, call.v, clean, clean_lse, layout, Options(**call.extras))
    for a, b in zip((out, lse, *grads[:3]), (clean, clean_lse, *expected[:3]), strict=True):
        assert torch.equal(a, b)


def test_a_negative_scale():
    call = example(CAUSAL, 20, 20, 16)
    call.extras["scale"] = -0.4
    check(call, compile_layout(call.groups, 20, 20, HEADS, Tiling(16, 16)), torch.float32)


@pytest.mark.parametrize("ordered", [False, True], ids=["natural", "ordered"])
@pytest.mark.parametrize("per_batch", [False, True], ids=["shared", "per batch"])
def test_layouts_made_at_run_time(ordered, per_batch):
    """Lists by batch element and head, ragged ends, orders of a head's own, causal by position, pairs left out, shared keys."""
    g = torch.Generator().manual_seed(1)
    B, H, T, block = 2, 4, 43, 16
    lists = (B if per_batch else 1, H)
    places = 64 if ordered else 48
    order = None
    if ordered:
        order = torch.full((*lists, places), -1)
        for b in range(lists[0]):
            for h in range(H):
                order[b, h, torch.randperm(places, generator=g)[:T].sort().values] = torch.randperm(T, generator=g)
    n = places // block
    index = torch.stack([torch.randperm(n, generator=g) for _ in range(lists[0] * H * n)]).view(*lists, n, n)
    count = torch.randint(0, n + 1, (*lists, n), generator=g)
    excluded = torch.randint(0, 12, (lists[0], 2, T), generator=g, dtype=torch.int32)
    device_layout = DeviceLayout(index, count, block, block, T, T, True, order, order, excluded.expand(B, -1, -1))
    mask = torch.zeros(B, H, T, T, dtype=torch.bool)
    for b in range(B):
        for h in range(H):
            at = (b if per_batch else 0, h)
            tokens = torch.arange(places) if order is None else order[at]
            for r in range(n):
                for c in index[at][r, : count[at][r]].tolist():
                    rows, keys = tokens[r * block : (r + 1) * block], tokens[c * block : (c + 1) * block]
                    rows, keys = rows[(rows >= 0) & (rows < T)], keys[(keys >= 0) & (keys < T)]
                    mask[b, h, rows[:, None], keys[None]] = True
    mask &= torch.ones(T, T, dtype=torch.bool).tril()
    distance = excluded[..., :, None] - excluded[..., None, :]  # (B or 1, 2, T, T)
    mask &= ~((distance >= 0) & (distance <= 1)).any(1, keepdim=True)
    q, k, v = (torch.randn(B, h, T, 16, generator=g) for h in (H, 2, 2))
    call = Call([], q, k, v, mask, {"scale": 0.25})
    check(call, device_layout.layout(H, True), torch.float32)


def test_what_it_cannot_serve_is_refused():
    call = example(CAUSAL, 20, 20, 16)
    layout = compile_layout(call.groups, 20, 20, HEADS, Tiling(16, 16))
    with pytest.raises(BackendError, match="float64"):
        triton_forward(call.q.double(), call.k.double(), call.v.double(), layout, Options(1.0))
    with pytest.raises(BackendError, match="seed"):
        triton_forward(call.q, call.k, call.v, layout, Options(1.0, dropout_p=0.5))
    with pytest.raises(BackendError, match="blocks of 24"):
        triton_forward(call.q, call.k, call.v, layout, Options(1.0, bias=torch.zeros(2, 1, 1), bias_block=24))
