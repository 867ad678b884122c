"""Times padded batches, both ways: a pattern that follows from each sequence's length, one that does not, and dense attention.

Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from longspan import sparse_attention
from longspan.benchmark.timing import Work, peak_memory, time_interleaved
from longspan.patterns import BigBird, Local, Pattern

BATCH, HEADS, WIDTH = 8, 12, 64
CASES: dict[str, Pattern] = {"bigbird 64": BigBird(64, 3, 3, 2), "local 256 a side": Local(513)}


def measure(lengths: Sequence[int], device: str, seconds: float = 1.0, only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """A row a case and T: a training step on sequences of eight lengths from T / 2 to T ("padded"), on as many of length T
    ("whole"), and by torch's attention of all pairs, without a mask ("dense"). bfloat16 on a GPU, float32 on a CPU.

    Args:
        only: names of cases; all of them unless given.
    """
    for length in lengths:
        for name in only or CASES:
            pattern = CASES[name]
            torch.manual_seed(0)
            dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
            shape = (BATCH, HEADS, length, WIDTH)
            leaves = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
            gradient = torch.randn(shape, device=device, dtype=dtype)
            given = torch.linspace(length // 2, length, BATCH).long()
            sides: dict[str, Work] = {
                "padded": _step(leaves, gradient, pattern, given.to(device)),
                "whole": _step(leaves, gradient, pattern, None),
                "dense": _step(leaves, gradient, None, None),
            }
            peaks = {side: peak_memory(work, device) for side, work in sides.items()}
            taken = time_interleaved(sides, device, seconds, 15, queued=True)
            yield {
                "case": name,
                "pattern": pattern.key,
                "lengths": given.tolist(),
                "shape": {"B": BATCH, "H": HEADS, "T": length, "D": WIDTH, "dtype": str(dtype).removeprefix("torch.")},
                "sides": {side: {**taken[side].plain(), "peak_mib": peaks[side] / (1 << 20)} for side in sides},
            }


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    sides = []
    for name, side in row["sides"].items():
        host = "" if side["host_ms"] is None else f" (host {side['host_ms']:.2f})"
        sides.append(f"{name} {side['ms']:.2f} ms{host}")
    return f"{row['case']}, {BATCH} sequences of up to {row['shape']['T']:,} tokens: {', '.join(sides)}"


def _step(leaves: list[Tensor], gradient: Tensor, pattern: Pattern | None, lengths: Tensor | None) -> Work:
    q, k, v = leaves

    def both() -> None:
        out = (
            F.scaled_dot_product_attention(q, k, v) if pattern is None else sparse_attention(q, k, v, pattern, lengths=lengths)
        )
        torch.autograd.grad(cast(Tensor, out), leaves, gradient)

    return both
