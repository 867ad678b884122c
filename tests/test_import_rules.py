"""Who may import whom: downward only, and the kernels stand alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_rooms_import_downward_only():
    linter = pytest.importorskip("importlinter.cli")
    assert linter.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_the_kernels_need_torch_alone():
    """Neither triton nor any library of the upper rooms can be imported here, and attention works."""
    code = """
import sys
for name in ("triton", "lightning", "hydra", "omegaconf", "wandb", "datasets", "torchmetrics", "pydantic", "rich", "longspan"):
    sys.modules[name] = None  # importing it raises ImportError
import longspan_kernels, longspan_kernels.block_sparse
print("imported")
"""
    assert run(code) == "imported"


@pytest.mark.parametrize("room", ["data", "records", "cost"])
def test_a_lower_room_loads_no_model_and_no_kernel(room):
    code = f"""
import sys
import longspan.{room}
upper = ("longspan.models", "longspan.tasks", "longspan.attention", "longspan_kernels")
print(sorted(name for name in sys.modules if name.startswith(upper)))
"""
    assert run(code) == "[]"


def test_sparse_attention_is_a_public_name():
    assert run("from longspan import sparse_attention; print(sparse_attention.__name__)") == "sparse_attention"
