"""Kernels compile for GPUs that are not here: the interpreter takes what the compiler refuses, and knows no shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from longspan_kernels.block_sparse.triton.configs import shared_memory

SCRIPT = Path(__file__).parents[1] / "shared" / "compile_kernels.py"


SEVERAL = [pytest.param(*case, marks=pytest.mark.exhaustive) for case in ((90, 7), (80, 1), (120, 2))]  # minutes each


@pytest.mark.parametrize(("capability", "cases"), [(90, 1), *SEVERAL])
def test_every_kernel_compiles_and_fits(capability, cases):
    settings = {**os.environ, "TRITON_INTERPRET": "0"}
    words = [sys.executable, str(SCRIPT), str(capability), str(cases)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=settings, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    names = {"forward_rows", "backward_rows", "backward_columns", "prepare_rows", "add_splits"}
    names |= {"segment_states", "carry_states", "attend_segments"}
    names |= {"invert_systems", "make_operands", "run_states", "read_states"}
    names |= {"local_gradients", "run_states_back", "finish_gradients"}
    names |= {"selected_parts", "merge_parts", "selected_columns", "selected_rows", "attend_tokens", "differentiate_tokens"}
    assert names <= {row[0] for row in rows}
    for name, *_, shared in rows:
        assert int(shared) <= shared_memory((capability // 10, capability % 10)), name
