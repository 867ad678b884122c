"""Times decoding: milliseconds and cache bytes of one more token against how many tokens came before.

Legend: B batch, H heads, D head width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import longspan.attention
from longspan.benchmark.growth import parse_variant

VARIANTS = (
    "full",
    "local",
    "longformer",
    "bigbird",
    "strided",
    "moba",
    "nsa",
    "retention",
    "linear",
    "gated_linear",
    "gated_delta",
)
POSITIONS = tuple(1 << bits for bits in range(10, 18))  # 1k to 128k
FILLED_AT_ONCE = 1024  # tokens
CALLS = 24  # timed at each position
MARKERS = "os^vD<>PX*h"  # lines that cover each other are told apart by them


def available(texts: Sequence[str] = ()) -> list[str]:
    """The variants asked for, or those of `VARIANTS` that this version has."""
    return list(texts) or [name for name in VARIANTS if name in longspan.attention.__all__]


def measure(
    texts: Sequence[str],
    positions: Sequence[int] = POSITIONS,
    *,
    device: str = "cpu",
    heads: int = 8,
    head_dim: int = 64,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    each: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """One row a variant and position: the median time of a token in ms, and the bytes of the cache.

    Keys and values before the position are random numbers that go into the cache without attention where the cache can take
    them so, as only what it holds matters.

    Args:
        each: called with each row.
    """
    rows: list[dict[str, Any]] = []
    longest = max(positions) + CALLS + 1
    for text in texts:
        name, settings = parse_variant(text)
        module = getattr(longspan.attention, name)(heads=heads, head_dim=head_dim, causal=True, max_length=longest, **settings)
        module = module.to(device=device, dtype=dtype).eval()
        cache = module.new_cache(batch, device=device, dtype=dtype)
        filled = 0
        for position in sorted(positions):
            while filled < position:
                n = min(FILLED_AT_ONCE, position - filled)
                _fill(module, cache, [torch.randn(batch, heads, n, head_dim, device=device, dtype=dtype) for _ in range(3)])
                filled += n
            taken = []
            for _ in range(CALLS):
                token = [torch.randn(batch, heads, 1, head_dim, device=device, dtype=dtype) for _ in range(3)]
                taken.append(_timed(lambda: module.decode(*token, cache), device))  # noqa: B023
                filled += 1
            row = {
                "variant": text,
                "position": position,
                "batch": batch,
                "heads": heads,
                "head_dim": head_dim,
                "dtype": str(dtype),
                "ms": 1e3 * statistics.median(taken),
                "cache_bytes": cache.nbytes,
            }
            rows.append(row)
            if each is not None:
                each(row)
    return rows


@torch.no_grad()
def _fill(module: Any, cache: Any, tensors: list[Tensor]) -> None:
    q, k, v = tensors
    if not hasattr(cache, "add"):
        module.decode(q, k, v, cache)
        return
    before = cache.positions
    cache.add(k, v, None)
    if hasattr(cache, "compress"):
        cache.compress(before, k.shape[2], module.compress_k, module.compress_v)


def _timed(work: Callable[[], Any], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def draw(rows: Sequence[dict[str, Any]], file: Path) -> Path:
    """Two panels over the position, both axes by powers: time a token, and what the cache holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, key, scale, title in (
        (panels[0], "ms", 1.0, "ms a token"),
        (panels[1], "cache_bytes", 1 / (1 << 20), "cache, MiB"),
    ):
        for number, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            own = [row for row in rows if row["variant"] == variant]
            color = [*(f"C{n}" for n in range(10)), "black"][number % 11]
            look = {"color": color, "marker": MARKERS[number % len(MARKERS)], "alpha": 0.8}
            axes.plot([row["position"] for row in own], [row[key] * scale for row in own], ms=5, label=variant, **look)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if key == "ms" else "")
        axes.tick_params(which="both", labelsize=8)
        axes.set_xlabel("tokens before")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
    figure.savefig(file, dpi=150)
    return file
