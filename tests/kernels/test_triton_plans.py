"""A launch is worked out once, and what is compiled for it serves what it is given."""

from contextlib import contextmanager

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/gpu runs the compiled kernels", allow_module_level=True)
pytest.importorskip("triton")

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.reference import reference_attention
from longspan_kernels.block_sparse.rules import Band
from longspan_kernels.block_sparse.triton import backward, forward
from longspan_kernels.block_sparse.triton import call as calls
from longspan_kernels.block_sparse.triton.call import Call
from longspan_kernels.launch import launcher as launching
from longspan_kernels.launch.launcher import Launch, Plan, alignment

CAUSAL = Band(0, None)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


class _Compiled:
    def __init__(self, log):
        self.log = log

    def __getitem__(self, grid):
        return lambda *args: self.log.append((grid, args))


class _Param:
    def __init__(self, name, is_constexpr=False, do_not_specialize=False):
        self.name, self.is_constexpr, self.do_not_specialize = name, is_constexpr, do_not_specialize


class _Kernel:
    """Stands for a compiled function: counts how often it is dispatched through Triton."""

    params = (_Param("X"), _Param("length", do_not_specialize=True), _Param("stride"), _Param("D", is_constexpr=True))
    arg_names = tuple(p.name for p in params)
    __name__ = "kernel"

    def __init__(self):
        self.dispatched, self.direct = 0, []

    def __getitem__(self, grid):
        def dispatch(*args, num_warps, num_stages, **numbers):
            self.dispatched += 1
            return _Compiled(self.direct)

        return dispatch


def test_a_kernel_serves_every_length_that_it_is_not_compiled_for(monkeypatch):
    monkeypatch.setattr(launching, "DIRECT", True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    kernel, x = _Kernel(), torch.zeros(4)

    def call(**numbers):
        Plan(kernel, 7, {"stride": 64, "D": 64} | numbers, Launch(4, 2))(x)

    call(length=100)
    call(length=101)
    assert kernel.dispatched == 1 and kernel.direct == [((7, 1, 1), (x, 101, 64, 64))]
    for change in ({"stride": 65}, {"D": 32}):
        before = kernel.dispatched
        call(length=100, **change)
        assert kernel.dispatched == before + 1


def test_kernels_run_where_their_tensors_lie(monkeypatch):
    """Another device may be the current one: a model on the second of two."""
    entered = []

    @contextmanager
    def device(one):
        entered.append(one)
        yield
        entered.append(None)

    class Tensor:
        is_cuda, device = True, torch.device("cuda", 1)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert launching.on_its_device(lambda x, y, z: (list(entered), y, z))(Tensor(), 1, z=2) == ([Tensor.device], 1, 2)
    assert entered == [Tensor.device, None]
    assert launching.on_its_device(len)(torch.zeros(3)) == 3 and len(entered) == 2
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert launching.on_its_device(lambda x: list(entered))(Tensor()) == entered and len(entered) == 2  # it is already


def test_a_kernel_compiled_ahead_stays_so_where_others_need_a_shallower_pipeline(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launching, "_ahead", {})
    monkeypatch.setattr(launching, "_stages", {})
    asked = []

    class Kernel(_Kernel):
        def __getitem__(self, grid):
            def dispatch(*args, num_warps, num_stages, **numbers):
                asked.append(num_stages)
                return _Compiled([])

            return dispatch

    kernel, x = Kernel(), torch.zeros(4)
    plan = Plan(kernel, 1, {"length": 3, "stride": 64, "D": 64}, Launch(4, 4))
    launching._ahead[plan._key((x,))] = 4
    assert plan.shallower()  # for another kernel of the same tile
    plan(x)
    assert asked == [4]


def test_a_call_knows_what_its_launches_depend_on():
    layout = compile_layout([((0, 1), CAUSAL)], 32, 32, 2, Tiling(16, 16))
    x = torch.randn(1, 2, 33, 16)

    def key(q, **changes):
        return Call(q, q, q, layout, Options(**{"scale": 1.0} | changes)).key

    q = x[:, :, :32]
    assert key(q) == key(torch.randn(1, 2, 33, 16)[:, :, :32])
    assert key(q) != key(q.contiguous()) and key(q) != key(q, scale=2.0)
    lengths = torch.tensor([5], dtype=torch.int32)
    assert key(q) != key(q, q_lengths=lengths, k_lengths=lengths)


def starting_at(place: int, *shape: int) -> torch.Tensor:
    """A tensor that starts at an element of memory whose first is at a multiple of 16 bytes."""
    x = torch.randn(shape)
    return torch.empty(place + x.numel())[place:].view(shape).copy_(x)


def test_kernels_read_from_multiples_of_16_bytes(monkeypatch):
    """As they are compiled for: what starts elsewhere is copied, also where launches are those of a call before."""
    launch = Plan.__call__

    def checked(plan, *tensors):
        flat = [x for given in tensors for x in (given if isinstance(given, tuple) else (given,))]
        assert not any(x.data_ptr() % 16 for x in flat if isinstance(x, torch.Tensor))
        launch(plan, *tensors)

    monkeypatch.setattr(Plan, "__call__", checked)
    torch.manual_seed(0)
    monkeypatch.setattr(calls, "launch_of", lambda *_: Launch(4, 2, by_tma=True))
    layout = compile_layout([((0, 1), CAUSAL)], 32, 32, 2, Tiling(16, 16))
    mask = CAUSAL.live(0, torch.arange(32)[:, None], torch.arange(32)[None]).expand(2, 32, 32)
    for odd in ("q", "k", "v", "dout", ""):
        q, k, v, dout = (starting_at(int(name == odd), 1, 2, 32, 16) for name in ("q", "k", "v", "dout"))
        out, lse = forward.triton_forward(q, k, v, layout, Options(0.3))
        got = (out, *backward.triton_backward(dout, None, q, k, v, out, lse, layout, Options(0.3))[:3])
        leaves = [x.double().requires_grad_() for x in (q, k, v)]
        right, _ = reference_attention(*leaves, mask, scale=0.3)
        for a, b in zip(got, (right, *torch.autograd.grad(right, leaves, dout.double())), strict=True):
            torch.testing.assert_close(a.double(), b.detach(), atol=2e-5, rtol=2e-4)


def test_windows_that_overlap_are_read_as_they_are():
    """What starts off 16 bytes is copied row by row, in whatever order its tokens lie."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 200, generator=g)[:, 1:42].unfold(-1, 32, 1)[:, None]  # (2, 1, 10, 32), a token a step of one number
    assert x.stride()[2:] == (1, 1) and x.data_ptr() % 16
    layout = compile_layout([((0,), CAUSAL)], 10, 10, 1, Tiling(16, 16))
    out, _ = forward.triton_forward(x, x, x, layout, Options(0.3))
    mask = CAUSAL.live(0, torch.arange(10)[:, None], torch.arange(10)[None])[None]
    right, _ = reference_attention(*[x.double()] * 3, mask, scale=0.3)
    torch.testing.assert_close(out.double(), right, atol=2e-5, rtol=2e-4)


def test_one_token_is_read_as_many_are():
    """By kernels that another length has."""
    rows = torch.randn(1, 1, 40, 72)[..., :64]
    assert alignment(64, rows) == alignment(64, rows[:, :, :1]) == 1
    assert alignment(64, rows.contiguous()[:, :, :1]) == 16


def test_a_launch_that_is_collected_is_not_made(monkeypatch):
    launched, wanted = [], []
    plan = launching.Plan(None, 1, {}, launching.SMALL)
    plan.run = lambda *tensors: launched.append(tensors)  # as after a call without gradients
    monkeypatch.setattr(launching.Plan, "_want", lambda self, tensors, into: wanted.append(tensors))
    monkeypatch.setattr(launching._here, "wanted", {})
    plan("no memory")
    assert wanted == [("no memory",)] and not launched
    monkeypatch.setattr(launching._here, "wanted", None)
    plan("memory")
    assert launched == [("memory",)]
