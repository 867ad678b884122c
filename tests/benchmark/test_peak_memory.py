"""Peak memory on a CPU counts results whether their memory is new or was left by earlier ones."""

import pytest
import torch

from longspan.benchmark import linear
from longspan.benchmark.timing import peak_memory
from longspan_kernels.launch import kept_memory


def test_memory_that_earlier_results_left_counts(monkeypatch):
    monkeypatch.setattr(kept_memory, "LEAST", 1)

    def work():
        kept_memory.results.empty((1 << 20,), torch.empty(0)).fill_(0.0)

    work()
    assert kept_memory.results.kept() >= 4 << 20
    assert peak_memory(work, "cpu") >= 4 << 20


@pytest.mark.parametrize("longest", [64, 128])
def test_full_attention_is_timed_up_to_a_length_that_the_device_can_take(longest, monkeypatch):
    monkeypatch.setitem(linear.LONGEST_WITH_PEER, "cpu", longest)
    rows = list(linear.measure([64, 128], "cpu", seconds=0.001, ops=["linear"]))
    assert ["sdpa" in row["sides"] for row in rows] == [True, longest == 128]
    assert all(row["sides"]["longspan"]["both"]["ms"] > 0 for row in rows)
