"""The notebooks run from top to bottom on a CPU, and the statements in them, which are assertions there, hold."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LIMIT = 180  # seconds
# A fifth of the steps of its runs: enough for each cell, too few for a reader to see anything.
FEWER_STEPS = {"trainer.max_steps=40": "trainer.max_steps=8", "trainer.val_check_interval=10": "trainer.val_check_interval=2"}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        for whole, fewer in FEWER_STEPS.items():
            cell.source = cell.source.replace(f'"{whole}"', f'"{fewer}"')
    monkeypatch.setitem(os.environ, "MPLBACKEND", "module://matplotlib_inline.backend_inline")
    begun = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    assert time.monotonic() - begun < LIMIT
