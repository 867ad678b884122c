"""Timing on a GPU: works of unlike lengths are timed at the clock that they hold; a genome's loader is ahead of a step."""

import pytest
import torch

from longspan.benchmark import loader, timing
from longspan.cost.memory import DEVICE_UNIT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_heated_work_is_timed_behind_itself(monkeypatch):
    monkeypatch.setattr(timing, "HEATED", 0.2)
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    calls = {"product": 0, "two": 0}

    def product():
        calls["product"] += 1
        return x @ x

    def two():
        calls["two"] += 1
        return x @ x @ x

    alone = timing.time_interleaved({"product": product}, "cuda", 0.01, most=3)
    assert alone["product"].clock_mhz is None
    calls["product"] = 0
    found = timing.time_interleaved({"product": product, "two": two}, "cuda", 0.01, most=3, heated=True)
    for name, one in found.items():
        assert calls[name] * one.seconds > 3 * 0.1  # half of what three samples start behind, and far more than themselves
    clocks = [one.clock_mhz for one in found.values()]
    assert clocks == [None, None] or all(200 < clock < 4000 for clock in clocks)


def test_training_waits_less_for_windows_of_a_genome_than_it_computes():
    """The suite's smallest case at its own length: a million bases a step; what it waits is no more than a tenth."""
    rows = []
    size = loader.Size(warmup_steps=2, steps=4)
    loader.measure(["linear"], [1 << 20], [0], device="cuda", bases=12 << 20, size=size, each=rows.append)
    encoding, alone, training = rows
    assert encoding["per_second"] > 0 and alone["bases"] == 6 << 20
    assert training["peak_memory_unit"] == DEVICE_UNIT
    assert 0 < training["data_time_share"] < 0.1
