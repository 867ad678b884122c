"""Results that are freed leave their memory to later ones; what is still referred to is never given away."""

import gc
import multiprocessing
import threading

import pytest
import torch
from torch.nn import functional as F

from longspan_kernels import clear_caches
from longspan_kernels.launch import kept_memory
from longspan_kernels.launch.kept_memory import KeptMemory
from longspan_kernels.linear import gated_delta_rule, linear_attention


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(kept_memory, "LEAST", 1 << 12)
    monkeypatch.setattr(kept_memory, "MOST", 1 << 16)
    return KeptMemory()


LIKE = torch.empty(0)


def test_freed_memory_is_taken_again(memory):
    first = memory.empty((4, 512), LIKE)
    assert first.shape == (4, 512) and first.dtype == torch.float32 and first.is_contiguous()
    place = first.data_ptr()
    del first
    assert memory.kept() == 8192
    again = memory.empty((900, 2), LIKE, torch.float32)  # a little smaller
    assert again.data_ptr() == place and memory.kept() == 0


def test_memory_stays_with_whatever_refers_to_it(memory):
    first = memory.empty((2048,), LIKE).fill_(1.0)
    view = first[5:9].view(2, 2)
    del first
    gc.collect()
    assert memory.kept() == 0
    second = memory.empty((2048,), LIKE).fill_(2.0)
    assert view.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    del view
    assert memory.kept() == 8192 and second.min() == 2.0


def test_what_is_kept_is_bounded_and_cleared(memory):
    several = [memory.empty((2048,), LIKE) for _ in range(20)]
    del several
    assert memory.kept() == 1 << 16
    memory.clear()
    assert memory.kept() == 0


def test_small_results_and_much_smaller_ones_take_no_kept_memory(memory):
    large = memory.empty((8192,), LIKE)
    place = large.data_ptr()
    del large
    assert memory.empty((2048,), LIKE).data_ptr() != place
    small = memory.empty((16,), LIKE)
    del small
    assert memory.kept() == 32768 + 8192


@pytest.mark.parametrize("delta", [False, True])
def test_results_in_kept_memory_are_those_in_new_memory(delta, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 100, 16) for _ in range(3))
    k, g, beta = F.normalize(k, dim=-1), -torch.rand(2, 2, 100), torch.rand(2, 2, 100)
    leaves = [x.requires_grad_() for x in (q, k, v, g)]

    def run():
        out = gated_delta_rule(q, k, v, beta, g) if delta else linear_attention(q, k, v, log_decay=g)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]

    expected = run()
    monkeypatch.setattr(kept_memory, "LEAST", 1)
    clear_caches()
    run()
    assert kept_memory.results.kept() > 0
    held = run()
    for _ in range(2):  # the second in what the first has left, while `held` is alive
        for got, before, right in zip(run(), held, expected, strict=True):
            assert torch.equal(got, right) and torch.equal(before, right)
            assert got.data_ptr() != before.data_ptr()
    del held
    clear_caches()
    assert kept_memory.results.kept() == 0


def _take_some():
    kept_memory.results.empty((2048,), LIKE).fill_(3.0)


def test_a_forked_process_has_a_lock_of_its_own(monkeypatch):
    monkeypatch.setattr(kept_memory, "LEAST", 1)
    held, done = threading.Event(), threading.Event()

    def hold():
        with kept_memory.results._lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    process = multiprocessing.get_context("fork").Process(target=_take_some)
    process.start()
    process.join(30)
    code = process.exitcode
    process.kill()
    done.set()
    thread.join()
    assert code == 0
