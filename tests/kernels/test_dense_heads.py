"""Which calls are left to cuDNN: by the table, the options and the pattern. The kernels themselves: tests/gpu."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from longspan.patterns import Full, Global, Local
from longspan_kernels.block_sparse import cudnn
from longspan_kernels.block_sparse.args import Options, Source


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(cudnn, "capability_of", lambda device: (9, 0))
    with FakeTensorMode():
        yield


def on_gpu(heads=2, length=4096, width=128, dtype=torch.bfloat16):
    return torch.empty(1, heads, length, width, dtype=dtype, device="cuda")


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ({}, {}, True),
        ({"dtype": torch.float16}, {}, True),
        ({"dtype": torch.float32}, {}, False),
        ({}, {"dropout_p": 0.1}, False),
        ({}, {"q_lengths": 1}, False),
        ({}, {"q_segments": 1, "k_segments": 1}, False),
        ({}, {"bias": 1}, False),
        ({}, {"scale": 0.0}, False),
        ({}, {"scale": -1.0}, False),
    ],
)
def test_calls_that_it_may_serve(hopper, given, options, expected):
    assert cudnn.may_serve(on_gpu(**given), Options(**{"scale": 1.0, **options})) is expected


def test_calls_on_a_cpu_stay_there():
    q = torch.empty(1, 2, 2048, 128, dtype=torch.bfloat16)
    assert not cudnn.may_serve(q, Options(1.0))


@pytest.mark.parametrize(
    ("pattern", "causal", "lengths", "expected"),
    [
        (Full(), False, (4096, 4096), True),
        (Full(), True, (4096, 4096), True),
        (Full(), True, (4096, 8192), False),
        (Full(), False, (4096, 8192), True),
        (Full(), False, (512, 512), False),
        (Local(256), True, (4096, 4096), False),
        (Local(256) | Global(first=4), False, (4096, 4096), False),
    ],
)
def test_patterns_that_it_serves(hopper, monkeypatch, pattern, causal, lengths, expected):
    q, k = (on_gpu(length=length) for length in lengths)
    for which in ("forward", "backward"):
        assert cudnn.serves(which, q, k, Source(pattern.key, causal)) is expected
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not cudnn.serves("backward", q, k, Source(pattern.key, causal))


def test_widths_that_the_table_lacks(hopper):
    q = on_gpu(width=64)
    assert not cudnn.serves("forward", q, q, Source(Full().key, True))
