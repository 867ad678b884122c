"""Settings of the tests on GPUs."""

import pytest


@pytest.fixture(autouse=True)
def _no_other_lengths(monkeypatch):
    """Most tests call at one length, and wait for no kernels of others."""
    launching = pytest.importorskip("longspan_kernels.launch.launcher")
    monkeypatch.setattr(launching, "AHEAD", False)
