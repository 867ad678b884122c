"""Times the compilation of a pattern for a length, and measures the memory of its layout."""

from __future__ import annotations

import time
from typing import Any

import torch

from longspan.benchmark.timing import synchronise
from longspan.patterns import BigBird, Local, Longformer, Pattern, Strided
from longspan_kernels.block_sparse.backends import tilings_for
from longspan_kernels.block_sparse.cache import clear_layouts, layout_for

MILLION = 1 << 20


def cases() -> list[tuple[str, Pattern, bool, int, int]]:
    """(name, pattern, causal, length, heads)."""
    return [
        ("bigbird 128", BigBird(128, 3, 3, 2), False, 131072, 16),
        ("local 512 causal", Local(512), True, MILLION, 16),
        ("bigbird 128", BigBird(128, 3, 3, 2), False, MILLION, 16),
        ("longformer", Longformer(512, tuple(range(64))), False, MILLION, 16),
        ("local or strided causal", Local(128) | Strided(128), True, MILLION, 16),
    ]


def measure(device: str, head_dim: int = 128, repeats: int = 3) -> list[dict[str, Any]]:
    """One row a case: seconds from the pattern to both layouts (forward and backward tiles), their MiB, the cached look-up."""
    rows = []
    chosen = torch.device(device)
    backend = "triton" if chosen.type == "cuda" else "blocked"
    for name, pattern, causal, length, heads in cases():
        like = torch.empty((1, heads, 1, head_dim), dtype=torch.bfloat16, device=chosen).expand(1, heads, length, head_dim)
        tilings = dict.fromkeys(tilings_for(backend, like, pattern.key, causal, 0))
        seconds = []
        for _ in range(repeats):
            clear_layouts()
            synchronise(device)
            began = time.perf_counter()
            built = [layout_for(pattern.key, length, length, heads, causal, tiling, chosen) for tiling in tilings]
            synchronise(device)
            seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        layout_for(pattern.key, length, length, heads, causal, next(iter(tilings)), chosen)
        rows.append(
            {
                "case": name,
                "length": length,
                "heads": heads,
                "first_seconds": seconds[0],
                "seconds": sorted(seconds)[repeats // 2],
                "cached_seconds": time.perf_counter() - began,
                "layouts": len(built),
                "mib": [layout.nbytes / (1 << 20) for layout in built],
                "components": [c.order for c in built[0].components],
            }
        )
    return rows
