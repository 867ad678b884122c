"""A first call compiles its own kernels and no others; lengths share kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longspan_kernels.errors import BackendError

pytest.importorskip("triton")

from longspan.patterns import Full
from longspan_kernels import clear_caches, precompile
from longspan_kernels.block_sparse import Tiling, layout_for
from longspan_kernels.launch import launcher

SCRIPT = Path(__file__).parents[1] / "shared" / "kernels_of_calls.py"
MOST_AT_ONE_LENGTH, MOST_AT_TEN = 12, 24  # kernels of a forward and a backward pass


@pytest.fixture(scope="module")
def found():
    """In a process of its own, where kernels are not interpreted."""
    settings = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, env=settings, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_first_call_compiles_what_it_launches_and_nothing_else(found):
    assert [row["pattern"] for row in found["patterns"] if row["differing"]] == []


def test_lengths_share_kernels(found):
    for row in found["patterns"]:
        assert 0 < row["at 1000"] <= MOST_AT_ONE_LENGTH and 0 < row["at 4096"] <= MOST_AT_ONE_LENGTH, row
        assert sum(row["new"]) <= MOST_AT_TEN, row


def test_lists_made_at_run_time_launch_the_same_kernels_at_any_length(found):
    assert len(set(found["lists"])) == 1


def test_precompile_says_where_it_cannot_work(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="need a CUDA device, not cpu"):
        precompile(Full(), [1024], heads=2, head_dim=64, device="cpu")
    with pytest.raises(BackendError, match="head width is 16 to 256, not 8"):
        precompile(Full(), [1024], heads=2, head_dim=8, device="cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert precompile(Full(), [1024], heads=2, head_dim=64, device="cpu") == 0


def test_clear_caches_forgets_layouts_and_kernels(monkeypatch):
    monkeypatch.setattr(launcher, "_compiled", {("a kernel",): None})
    asked = Full().key, 64, 64, 1, False, Tiling(), torch.device("cpu")
    before = layout_for(*asked)
    assert layout_for(*asked) is before
    clear_caches()
    assert layout_for(*asked) is not before and launcher._compiled == {}
