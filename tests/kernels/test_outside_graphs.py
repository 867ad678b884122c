"""What outlives a call: made by another thread, and kept as long as a recorded CUDA graph reads it."""

import gc
from contextlib import nullcontext
from dataclasses import replace
from threading import current_thread

import pytest
import torch

from longspan.patterns import Local
from longspan_kernels.block_sparse import cache as resolve
from longspan_kernels.block_sparse.compiler import Tiling
from longspan_kernels.errors import BackendError
from longspan_kernels.launch import graphs as outside_graphs
from longspan_kernels.launch.graphs import made_outside_graphs

GPU = torch.device("cuda", 0)


class _Stream:
    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


@pytest.fixture
def pretended(monkeypatch):
    """A GPU as far as the hand-over between threads asks one."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _Stream())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(outside_graphs, "capturing", lambda device: False)


def test_another_thread_makes_it_and_its_errors_are_the_caller_s(pretended):
    assert made_outside_graphs(current_thread, GPU) is not current_thread()
    assert made_outside_graphs(current_thread, torch.device("cpu")) is current_thread()
    assert made_outside_graphs(current_thread, GPU, stays=False) is current_thread()
    with pytest.raises(ZeroDivisionError):
        made_outside_graphs(lambda: 1 // 0, GPU)


def test_what_is_made_may_need_something_made_itself(pretended):
    """A predicate of a user's that calls sparse attention, say."""
    assert made_outside_graphs(lambda: made_outside_graphs(lambda: 7, GPU), GPU) == 7


def test_a_call_not_prepared_says_so_while_a_graph_is_recorded(pretended, monkeypatch):
    monkeypatch.setattr(outside_graphs, "capturing", lambda device: True)
    with pytest.raises(BackendError, match="once before recording"):
        made_outside_graphs(lambda: 7, GPU)


def test_a_recorded_layout_is_the_one_that_stays(monkeypatch):
    """A second graph of the same call must not take the place of what the first one reads."""
    monkeypatch.setattr(resolve, "_recorded", {})
    monkeypatch.setattr(resolve, "capturing", lambda device: True)
    call = (Local(8).key, 33, 33, 1, True, Tiling(16, 16), torch.device("cpu"))
    resolve.layout_for(*call)
    first = resolve.layout_for(*call)
    resolve.clear_layouts()
    assert resolve.layout_for(*call) is resolve.layout_for(*call) is first
    assert list(resolve._recorded.values()) == [first]


def test_a_question_about_a_pattern_leaves_its_thread_once(monkeypatch):
    """Each change of thread waits for all that the device has to do: asked in every backward pass, it may come only once."""
    asked = []

    def counted(make, device):
        asked.append(device)
        return make()

    monkeypatch.setattr(resolve, "made_outside_graphs", counted)
    resolve.every_query_sees_itself.cache_clear()
    key = Local(8).key
    answers = [resolve.every_query_sees_itself(key, 33, 2, True, torch.device("cpu")) for _ in range(3)]
    assert answers == [True] * 3 and len(asked) == 1


def test_what_was_derived_is_looked_up_before_a_thread_is_asked(monkeypatch):
    """A second call waits for nothing, also while a graph is recorded; what was made goes with its component."""
    ((_, rule),) = Local(8).head_rules(33, 33, 1, True, torch.device("cpu"))
    component = resolve.compile_layout([((0,), rule)], 33, 33, 1, Tiling(16, 16)).components[0]
    kept, made = resolve.Derived(), []
    monkeypatch.setattr(resolve, "made_outside_graphs", lambda make, device, stays: made.append(stays) or make())
    assert [kept.get(component, "a", lambda: 7), kept.get(component, "a", lambda: 8), kept.get(component, "b", lambda: 9)] == [
        7,
        7,
        9,
    ]
    assert made == [True, True] and kept.of(component) == {"a": 7, "b": 9}
    again = replace(component)  # a copy is another component
    assert kept.of(again) == {} and kept.get(again, "a", lambda: 1) == 1
    del component, again
    gc.collect()
    assert len(kept._made) == 0
