"""A Predicate whose function reads something that changes: the next call sees it, on every backend."""

import functools

import pytest
import torch
from interpreted import BACKENDS_HERE, interpreting

from longspan.functional import sparse_attention
from longspan.patterns import Local, PerHead, Predicate, Without
from longspan_kernels.errors import BackendError

T = 24
KINDS = torch.zeros(T, dtype=torch.long)
WINDOW = 3


class Documents:
    def __init__(self):
        self.ids = torch.zeros(T, dtype=torch.long)

    def same(self, b, h, i, j):
        return self.ids[i] == self.ids[j]

    def __call__(self, b, h, i, j):
        return self.same(b, h, i, j)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("ids", torch.zeros(T, dtype=torch.long))

    def forward(self, i, j):
        return self.ids[i] == self.ids[j]


def by_closure():
    ids = torch.zeros(T, dtype=torch.long)
    return (lambda b, h, i, j: ids[i] == ids[j]), ids


def by_global():
    return (lambda b, h, i, j: KINDS[i] == KINDS[j]), KINDS


def by_partial():
    ids = torch.zeros(T, dtype=torch.long)
    return functools.partial(lambda ids, b, h, i, j: ids[i] == ids[j], ids), ids


def by_method():
    own = Documents()
    return own.same, own.ids


def by_object():
    own = Documents()
    return own, own.ids


def by_module():
    own = Module()
    return (lambda b, h, i, j: own(i, j)), own.ids


def by_list():
    held = [torch.zeros(T, dtype=torch.long)]
    inner = lambda i: held[0][i]  # noqa: E731
    return (lambda b, h, i, j: inner(i) == inner(j)), held[0]


WAYS = [by_closure, by_global, by_partial, by_method, by_object, by_module, by_list]


def drawn():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, T, 16, generator=g) for _ in range(3)]


def expected(ids, *others):
    mask = ids[:, None] == ids[None, :]
    for other in others:
        mask = mask & other.mask(T)[0]
    q, k, v = drawn()
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_tensor_changed_in_place(way, backend):
    function, ids = way()
    p, compositions = Predicate(function), {}
    compositions[p] = ()
    if backend == "blocked":
        compositions |= {Local(9) & p: (Local(9),), PerHead([p, p]): (), Without(p, Predicate(lambda b, h, i, j: i < -99)): ()}
    ids.zero_()
    with interpreting(backend):
        for step in (1, 4, 8):
            ids.copy_(torch.arange(T) // step)
            for pattern, others in compositions.items():
                for _ in range(2):
                    out = sparse_attention(*drawn(), pattern, backend=backend)
                    torch.testing.assert_close(out, expected(ids, *others), atol=1e-5, rtol=1e-5)
                assert pattern.live_pairs(T) == int(pattern.mask(T).sum())


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_a_tensor_or_a_number_that_is_replaced(backend):
    ids, width = torch.zeros(T, dtype=torch.long), T
    p = Predicate(lambda b, h, i, j: (ids[i] == ids[j]) & ((i - j).abs() < width))
    with interpreting(backend):
        for step, width in ((2, T), (5, T), (5, 3)):
            ids = torch.arange(T) // step
            right = expected(ids, Local(2 * width - 1))
            torch.testing.assert_close(sparse_attention(*drawn(), p, backend=backend), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_what_nobody_sees_change_needs_a_refresh(backend):
    import numpy as np

    hidden = np.zeros(T, dtype=np.int64)
    p = Predicate(lambda b, h, i, j: torch.from_numpy(hidden.copy())[i] == torch.from_numpy(hidden.copy())[j])
    again = Predicate(p.mask_mod)
    with interpreting(backend):
        before = sparse_attention(*drawn(), p, backend=backend)
        hidden[:] = np.arange(T) // 4
        assert torch.equal(sparse_attention(*drawn(), p, backend=backend), before)
        again.refresh()  # equal patterns are one
        right = expected(torch.arange(T) // 4)
        torch.testing.assert_close(sparse_attention(*drawn(), p, backend=backend), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_a_change_before_the_backward_pass_is_no_silent_one(backend):
    ids = torch.arange(T) // 4
    p = Predicate(lambda b, h, i, j: ids[i] == ids[j])
    q, k, v = (x.requires_grad_() for x in drawn())
    with interpreting(backend):
        right = torch.autograd.grad(sparse_attention(q, k, v, p, backend=backend).square().sum(), q)[0]
        total = sparse_attention(q, k, v, p, backend=backend).square().sum()
        ids.zero_()
        if backend == "dense":
            assert torch.equal(torch.autograd.grad(total, q)[0], right)
        else:
            with pytest.raises(BackendError, match="changed between a call and its backward pass"):
                torch.autograd.grad(total, q)


def test_layouts_of_passed_states_are_dropped():
    from longspan_kernels.block_sparse.cache import _layouts, clear_layouts

    ids = torch.zeros(T, dtype=torch.long)
    p = Predicate(lambda b, h, i, j: ids[i] == ids[j])
    clear_layouts()
    for step in range(1, 6):
        ids.copy_(torch.arange(T) // step)
        sparse_attention(*drawn(), p, backend="blocked")
    assert len(_layouts) == 1


def test_a_compiled_graph_sees_the_change():
    ids = torch.zeros(T, dtype=torch.long)
    p = Predicate(lambda b, h, i, j: ids[i] == ids[j])
    compiled = torch.compile(
        lambda q, k, v: sparse_attention(q, k, v, p, backend="blocked"), backend="aot_eager", fullgraph=True
    )
    for step in (2, 6):
        ids.copy_(torch.arange(T) // step)
        torch.testing.assert_close(compiled(*drawn()), expected(ids), atol=1e-5, rtol=1e-5)
