"""Has every call take the kernels that serve a pattern at any length."""

from __future__ import annotations

import pytest

from longspan_kernels.block_sparse.triton import backward, forward
from longspan_kernels.block_sparse.triton.any_length import in_general


def serve_by_general_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """But where a layout is made at run time, which has none of its own."""

    def by_general_kernels(layouts, key, others_known, run):
        made_at_run_time = any(component.dynamic for layout in layouts.values() for component in layout.components)
        return run(layouts if made_at_run_time else {name: in_general(layout) for name, layout in layouts.items()})

    for module in (forward, backward):
        monkeypatch.setattr(module, "by_kernels_there_are", by_general_kernels)
