"""Triton's kernels as its interpreter runs them, on machines without a GPU.

Whether a kernel is interpreted is decided when triton and the kernel are first imported, so this comes before any test; the
switch is taken back at once, so that `backend="auto"` on a CPU is what users get. A test that runs kernels sets it again.
"""

import os
from importlib.util import find_spec


def import_interpreted() -> None:
    import torch

    if torch.cuda.is_available() or find_spec("triton") is None:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import longspan_kernels.block_sparse.triton.backward
        import longspan_kernels.block_sparse.triton.choose_kernel
        import longspan_kernels.block_sparse.triton.forward  # noqa: F401
    finally:
        del os.environ["TRITON_INTERPRET"]
