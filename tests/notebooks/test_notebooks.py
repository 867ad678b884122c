"""The notebooks run from top to bottom on a CPU, and the statements in them, which are assertions there, hold."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LIMIT = 180  # seconds


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setitem(os.environ, "MPLBACKEND", "module://matplotlib_inline.backend_inline")
    begun = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    assert time.monotonic() - begun < LIMIT
