"""Bucketed attention on Triton, interpreted on the CPU, against its dense definition in float64: outputs, gradients, orders."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan_kernels.bucketed import (
    Buckets,
    add_up_buckets,
    bucket_tables,
    bucketed_attention,
    bucketed_reference,
    hash_keys,
    nearest_keys,
    tile_for,
)
from longspan_kernels.bucketed.reference import chunk_numbers
from longspan_kernels.bucketed.tables import row_keys
from longspan_kernels.errors import BackendError, KernelError

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


UNIT = ((False, False), (True, False), (True, True))  # keys, queries


@st.composite
def calls(draw):
    """(q, v, bucket, how, lengths)."""
    B, H, T, D = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 50)), draw(st.sampled_from([16, 20]))
    rounds, buckets, size = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([16, 48, 64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    how = Buckets(rounds, size, tile_for(size, D, 4), *(draw(st.booleans()) for _ in range(3)), *draw(st.sampled_from(UNIT)))
    q, v = (torch.randn(B, H, T, D, generator=generator, dtype=torch.float64) for _ in range(2))
    if draw(st.booleans()):  # other strides
        q, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, v))
    bucket = torch.randint(0, buckets, (B, H, rounds, T), generator=generator)
    lengths = torch.randint(0, T + 1, (B,), generator=generator) if draw(st.booleans()) else None
    if lengths is not None:
        bucket = bucket.masked_fill((torch.arange(T) >= lengths[:, None])[:, None, None], -1)
    return q, v, bucket, buckets, how, lengths


def tables_of(bucket, buckets, how):
    keys = row_keys(bucket.flatten(0, 2), buckets).to(DEVICE)
    return bucket_tables(keys, how.rounds, buckets, how.size, how.tile, how.aligned)


def both(q, v, bucket, buckets, how, lengths, dtype=torch.float32, dropout_p=0.0):
    """(out, dq, dv) of the kernels and of the definition."""
    scale, generator = 1.0 if how.unit_keys else q.shape[-1] ** -0.5, torch.Generator().manual_seed(1)
    dout = torch.randn(q.shape, generator=generator, dtype=torch.float64)
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in (q, v)]
    there = None if lengths is None else lengths.to(DEVICE)
    torch.manual_seed(3)
    tables = tables_of(bucket, buckets, how)
    out = bucketed_attention(*leaves, tables, how, scale=scale, lengths=there, dropout_p=dropout_p)
    torch.manual_seed(3)
    seed = torch.randint(0, 1 << 31, (1,), device=DEVICE).cpu()
    exact = [x.detach().cpu().double().requires_grad_() for x in leaves]
    expected = bucketed_reference(*exact, bucket, how, scale, dropout_p=dropout_p, seed=seed)
    found = (out, *torch.autograd.grad(out, leaves, dout.to(DEVICE, dtype)))
    return [x.cpu() for x in found], (expected, *torch.autograd.grad(expected, exact, dout.to(dtype).double()))


@settings(max_examples=8, deadline=None)
@given(call=calls())
def test_outputs_and_gradients_are_the_definitions(call):
    for a, b in zip(*both(*call), strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=2e-4)


def drawn(rounds=2, size=16, dtype=torch.float64, T=50, buckets=3, width=16, **change):
    generator = torch.Generator().manual_seed(0)
    q, v = (torch.randn(1, 2, T, width, generator=generator).to(dtype) for _ in range(2))
    how = {"aligned": True, "causal": True, "itself": False, "unit_keys": True} | change
    bucket = torch.randint(0, buckets, (1, 2, rounds, T), generator=generator)
    return q, v, bucket, buckets, Buckets(rounds, size, tile_for(size, width, q.element_size()), **how), None


@pytest.mark.parametrize("causal", [True, False])
def test_dropout_falls_on_the_drawn_pairs(causal):
    for a, b in zip(*both(*drawn(causal=causal), dropout_p=0.3), strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=2e-4)


def test_half_precision_comes_near():
    q, v, *rest = drawn(dtype=torch.float16)
    for a, b in zip(*both(q, v, *rest, dtype=torch.float16), strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-2, rtol=2e-2)


def test_what_lies_beyond_a_length_does_not_count_and_may_be_nan():
    q, v, bucket, buckets, how, _ = drawn()
    bucket[..., 30:] = -1
    tables, lengths = tables_of(bucket, buckets, how), torch.tensor([30], device=DEVICE)
    results = []
    for beyond in (0.0, float("nan")):
        x, y = (torch.cat((t[:, :, :30], torch.full_like(t[:, :, 30:], beyond)), 2).float().to(DEVICE) for t in (q, v))
        x.requires_grad_(), y.requires_grad_()
        out = bucketed_attention(x, y, tables, how, scale=1.0, lengths=lengths)
        dout = torch.ones_like(out)
        dout[:, :, 30:] = beyond
        results.append((out, *torch.autograd.grad(out, (x, y), dout)))
    for a, b in zip(*results, strict=True):
        assert a.equal(b) and not b[:, :, 30:].any()


def test_the_same_bits_twice():
    (first, _), (second, _) = (both(*drawn(rounds=3)) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@settings(max_examples=12, deadline=None)
@given(
    T=st.integers(1, 80),
    buckets=st.integers(1, 6),
    size=st.sampled_from([16, 48]),
    aligned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_tables_list_every_token_once_in_its_chunk(T, buckets, size, aligned, seed):
    generator = torch.Generator().manual_seed(seed)
    bucket = torch.randint(-1, buckets, (3, T), generator=generator)
    order, tiles, numbers, _ = (
        x.cpu() for x in bucket_tables(row_keys(bucket, buckets).to(DEVICE), 1, buckets, size, 16, aligned)
    )
    chunk = chunk_numbers(bucket, size, aligned)
    for n in range(3):
        expected = sorted(range(T), key=lambda t, n=n: (int(bucket[n, t]) % (buckets + 1), t))
        assert order[n].tolist() == expected
        seen = []
        for begin, first, end, start in tiles[n].tolist():
            if begin == end:
                continue
            mine = order[n, begin : min(begin + 16, end)]
            seen += mine.tolist()
            here = order[n, start : min(start + size, end)]
            back = order[n, first:start]
            assert chunk[n, mine].unique().tolist() == chunk[n, here].unique().tolist() == [chunk[n, mine[0]]]
            assert chunk[n, back].unique().tolist() == ([chunk[n, mine[0]] - 1] if len(back) else [])
        assert sorted(seen) == (bucket[n] >= 0).nonzero()[:, 0].tolist()
        exists = bucket[n] >= 0
        behind, apart = numbers[n] - numbers[n].T, chunk[n][:, None] - chunk[n]
        found = (bucket[n][:, None] == bucket[n]) & (apart >= 0) & (apart <= 1)
        assert (((behind >= 0) & (behind <= size)) == found)[exists][:, exists].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("factors", "width", "T"), [([4], 16, 50), ([16, 8], 20, 130), ([64, 2], 64, 70)])
def test_hashes_are_those_of_the_definition(factors, width, T, dtype):
    generator = torch.Generator().manual_seed(0)
    q, R = torch.randn(2, 3, T, width, generator=generator).to(dtype), 2
    rotations = torch.randn(3, width, R, sum(factors) // 2, generator=generator)
    lengths = torch.tensor([T, T // 3])
    buckets, first, scale = torch.zeros(2, 3, R, T, dtype=torch.int64), 0, 1
    for factor in factors:
        turned = torch.einsum("bhtd,hdrf->bhrtf", q.double(), rotations[..., first : first + factor // 2].double())
        buckets += scale * torch.cat((turned, -turned), -1).argmax(-1)
        first, scale = first + factor // 2, scale * factor
    buckets = buckets.masked_fill((torch.arange(T) >= lengths[:, None])[:, None, None], -1)
    found = hash_keys(q.to(DEVICE), rotations.to(DEVICE), factors, lengths.to(DEVICE)).cpu()
    # A float32 sum may take another of two that are all but equal.
    assert (found != row_keys(buckets.view(-1, T), math.prod(factors))).float().mean() < 2e-3


@settings(max_examples=5, deadline=None)
@given(
    batch=st.integers(1, 2),
    T=st.integers(1, 80),
    C=st.integers(1, 70),
    width=st.sampled_from([16, 20]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    some=st.booleans(),
)
def test_clusters_are_those_of_the_nearest_centroid(batch, T, C, width, dtype, some):
    generator = torch.Generator().manual_seed(T)
    q, means = torch.randn(batch, 2, T, width, generator=generator).to(dtype), torch.randn(2, C, width, generator=generator)
    lengths = torch.randint(0, T + 1, (batch,), generator=generator) if some else torch.full((batch,), T)
    nearest = (q.double() @ means.double().mT).argmax(-1)  # (B, H, T)
    exists = (torch.arange(T) < lengths[:, None])[:, None].expand_as(nearest)
    keys = nearest_keys(q.to(DEVICE), means.to(DEVICE), lengths.to(DEVICE) if some else None)
    assert keys.cpu().equal(row_keys(nearest.masked_fill(~exists, -1).flatten(0, 1), C))
    order, _, _, start = bucket_tables(keys, 1, C, 16, 16, True)
    sums, counts = torch.ones(2, C, width, device=DEVICE), torch.ones(2, C, device=DEVICE)
    add_up_buckets(q.to(DEVICE), order, start, sums, counts)
    rows = torch.nn.functional.rms_norm(q.double(), (width,), eps=1e-6)
    member = torch.nn.functional.one_hot(nearest, C).double() * exists[..., None]
    torch.testing.assert_close(counts.cpu().double() - 1, member.sum((0, 2)))
    torch.testing.assert_close(sums.cpu().double() - 1, torch.einsum("bhtc,bhtd->hcd", member, rows), atol=1e-5, rtol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    q, v, bucket, buckets, how, _ = drawn()
    tables = tables_of(bucket, buckets, how)
    with pytest.raises(KernelError, match="orders"):
        bucketed_attention(q[:, :1], v[:, :1], tables, how, scale=1.0)
    with pytest.raises(KernelError, match="unit_queries without"):
        bucketed_attention(q, v, tables, how._replace(unit_keys=False, unit_queries=True), scale=1.0)
    with pytest.raises(KernelError, match="32 bits"):
        bucket_tables(torch.empty(1 << 16, 1 << 15, dtype=torch.int32, device="meta"), 1, 4, 16, 16, True)


def test_gradients_of_gradients_are_refused():
    q, v, bucket, buckets, how, _ = drawn()
    q = q.float().to(DEVICE).requires_grad_()
    out = bucketed_attention(q, v.float().to(DEVICE), tables_of(bucket, buckets, how), how, scale=1.0)
    with pytest.raises(BackendError, match="blocked"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def test_ops_declare_their_shapes():
    q, v, bucket, buckets, how, _ = drawn()
    x, y = (t.float().to(DEVICE).requires_grad_() for t in (q, v))
    tables = tables_of(bucket, buckets, how)
    kinds = ("test_schema", "test_faketensor", "test_autograd_registration")
    call = (x, y, *tables[:3], None, None, how.numbers, 1.0, 0.0)
    torch.library.opcheck(torch.ops.longspan.bucketed_forward, call, test_utils=kinds)
    keys = row_keys(bucket.flatten(0, 2), buckets).to(DEVICE)
    torch.library.opcheck(torch.ops.longspan.bucket_tables, (keys, how.rounds, 3, 16, 16, True), test_utils=kinds[:2])
