"""Layouts made at run time against the dense reference: lists and orders by batch element and head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.block_sparse.args import Options, Source, packed
from longspan_kernels.block_sparse.layout import DeviceLayout
from longspan_kernels.block_sparse.op import attend_by
from longspan_kernels.block_sparse.reference import reference_attention
from longspan_kernels.errors import KernelError


def orders(generator, shape, length, block):
    """A permutation of the tokens for each list, padded with -1 here and there."""
    places = -(-(length + 5) // block) * block
    out = torch.full((*shape, places), -1)
    for b in range(shape[0]):
        for h in range(shape[1]):
            at = torch.randperm(places, generator=generator)[:length].sort().values
            out[b, h, at] = torch.randperm(length, generator=generator)
    return out


def dense_mask(layout: DeviceLayout, batch: int, heads: int) -> torch.Tensor:
    mask = torch.zeros(batch, heads, layout.q_len, layout.k_len, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            u = (b if layout.index.shape[0] > 1 else 0, h if layout.index.shape[1] > 1 else 0)
            rows_of = torch.arange(layout.q_len) if layout.q_order is None else layout.q_order[u]
            keys_of = torch.arange(layout.k_len) if layout.k_order is None else layout.k_order[u]
            for r in range(layout.index.shape[2]):
                rows = rows_of[r * layout.block_q : (r + 1) * layout.block_q]
                for e in range(int(layout.count[u][r])):
                    c = int(layout.index[u][r, e])
                    keys = keys_of[c * layout.block_k : (c + 1) * layout.block_k]
                    for i in rows[rows >= 0].tolist():
                        mask[b, h, i, keys[keys >= 0]] = True
    if layout.causal:
        i = torch.arange(layout.q_len)[:, None] + layout.k_len - layout.q_len
        mask &= i >= torch.arange(layout.k_len)
    return mask


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(0, 40), st.integers(0, 1 << 20), st.booleans(), st.booleans(), st.booleans(), st.booleans()
)
def test_against_the_reference(q_len, more, seed, per_batch, per_head, ordered, causal):
    g = torch.Generator().manual_seed(seed)
    B, H, share, D, block = 2, 4, 2, 16, 16
    k_len = q_len + more
    shape = (B if per_batch else 1, H if per_head else 1)
    q_order = orders(g, shape, q_len, block) if ordered else None
    k_order = orders(g, shape, k_len, block) if ordered else None
    rows = -(-q_len // block) if q_order is None else q_order.shape[2] // block
    columns = -(-k_len // block) if k_order is None else k_order.shape[2] // block
    index = torch.stack([torch.randperm(columns, generator=g) for _ in range(shape[0] * shape[1] * rows)]).view(
        *shape, rows, columns
    )
    index = index[..., : max(1, columns // 2)]
    count = torch.randint(0, index.shape[3] + 1, (*shape, rows), generator=g)
    layout = DeviceLayout(index, count, block, block, q_len, k_len, causal, q_order, k_order)
    q = torch.randn(B, H, q_len, D, generator=g, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(B, H // share, k_len, D, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out, lse = attend_by(q, k, v, layout, return_lse=True)
    mask = dense_mask(layout, B, H)
    assert layout.mask(B, H).equal(mask)
    parts = [reference_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], mask[b]) for b in range(B)]
    expected, expected_lse = torch.cat([o for o, _ in parts]), torch.cat([s for _, s in parts])
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(lse, expected_lse, atol=1e-10, rtol=1e-9)
    weight = torch.randn(out.shape, generator=g, dtype=torch.float64)
    total = lambda o, s: (o * weight).sum() + s.masked_fill(s.isinf(), 0.0).cos().sum()  # noqa: E731
    for a, b in zip(
        torch.autograd.grad(total(out, lse), (q, k, v)), _grads(total(expected, expected_lse), (q, k, v)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)


def _grads(total, leaves):
    return [
        torch.zeros_like(x) if g is None else g
        for g, x in zip(torch.autograd.grad(total, leaves, allow_unused=True), leaves, strict=True)
    ]


def example(causal: bool = True) -> tuple[torch.Tensor, DeviceLayout]:
    q = torch.randn(2, 2, 64, 16, requires_grad=True)
    index = torch.tensor([[0, 0], [0, 1], [1, 2], [0, 3]]).expand(2, 1, 4, 2).contiguous()
    count = torch.tensor([1, 2, 2, 2]).expand(2, 1, 4).contiguous()
    return q, DeviceLayout(index, count, 16, 16, 64, 64, causal)


def test_opcheck():
    q, layout = example()
    args = (q, q.detach(), q.detach(), *packed(Options(0.25), Source.listed(layout, 2), "blocked", False))
    torch.library.opcheck(torch.ops.longspan.block_sparse_forward.default, args)


def test_compiles_whole_with_the_choice_inside():
    def choose(q, k, v):
        # Blocks by content: each query block takes the two key blocks whose means it likes best.
        means = lambda x: x.unflatten(2, (-1, 16)).mean(3)  # noqa: E731
        index = (means(q) @ means(k).transpose(-1, -2)).topk(2).indices
        layout = DeviceLayout(index, torch.full(index.shape[:3], 2), 16, 16, q.shape[2], k.shape[2])
        return attend_by(q, k, v, layout)

    q, k, v = (torch.randn(2, 3, 64, 16) for _ in range(3))
    compiled = torch.compile(choose, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), choose(q, k, v))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.zeros(4, 2)}, "index has shape"),
        ({"count": torch.zeros(2, 1, 3)}, "count has shape"),
        ({"q_len": 80}, "80 places make 5"),
        ({"q_order": torch.zeros(2, 1, 60)}, "q_order has shape"),
        ({"excluded": torch.zeros(2, 1, 60)}, "excluded has shape"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, message):
    _, layout = example()
    with pytest.raises(KernelError, match=message):
        DeviceLayout(**{**vars(layout), **change})


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 1 << 20))
def test_excluded_pairs(length, rows, per_batch, causal, seed):
    g = torch.Generator().manual_seed(seed)
    blocks = -(-length // 16)
    index = torch.arange(blocks).expand(2, 1, blocks, blocks).contiguous()
    excluded = torch.randint(0, 9, (2 if per_batch else 1, rows, length), generator=g, dtype=torch.int32)
    layout = DeviceLayout(index, torch.full((2, 1, blocks), blocks), 16, 16, length, length, causal, excluded=excluded)
    q, k, v = (torch.randn(2, 1, length, 16, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))
    distance = excluded[..., :, None] - excluded[..., None, :]
    live = ~((distance >= 0) & (distance <= 1)).any(1, keepdim=True).expand(2, 1, length, length)
    live = live & torch.ones(length, length, dtype=torch.bool).tril() if causal else live
    assert layout.mask(2, 1).equal(live)
    parts = [reference_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], live[b]) for b in range(2)]
    out, lse = attend_by(q, k, v, layout, return_lse=True)
    expected = torch.cat([o for o, _ in parts])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, torch.cat([s for _, s in parts]))
    weight = torch.randn(out.shape, generator=g, dtype=torch.float64)
    for a, b in zip(_grads((out * weight).sum(), (q, k, v)), _grads((expected * weight).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("batch", "q_len", "k_len"), [(0, 32, 32), (1, 0, 0), (1, 0, 32), (1, 32, 0)])
def test_no_tokens_are_no_error(batch, q_len, k_len):
    blocks, of = -(-q_len // 16), -(-k_len // 16)
    layout = DeviceLayout(torch.arange(of).expand(1, 1, blocks, of), torch.full((1, 1, blocks), of), 16, 16, q_len, k_len)
    q = torch.randn(batch, 2, q_len, 16, requires_grad=True)
    k, v = (torch.randn(batch, 2, k_len, 16, requires_grad=True) for _ in range(2))
    for backend in ("auto", "dense"):
        out, lse = attend_by(q, k, v, layout, return_lse=True, backend=backend)
        assert not out.any() and (lse == -torch.inf).all()
        for gradient, x in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True):
            assert gradient.shape == x.shape and not gradient.any()


@pytest.mark.parametrize("change", [{"index": torch.full((2, 1, 4, 2), 9)}, {"count": torch.full((2, 1, 4), 3)}])
def test_numbers_out_of_range_are_named_whichever_backend(change):
    q, layout = example()
    wrong = DeviceLayout(**{**vars(layout), **change})
    for backend in ("auto", "blocked", "dense"):
        with pytest.raises(KernelError, match=f"{next(iter(change))} holds"):
            attend_by(q, q, q, wrong, backend=backend)
