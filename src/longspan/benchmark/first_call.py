"""What the first call of a pattern waits for, what another length does, and what general kernels cost beside a length's own.

Each row is measured in a process of its own, with an empty cache of compiled kernels and with the one that leaves behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch

from longspan.benchmark.timing import synchronise, time_interleaved
from longspan.functional import sparse_attention
from longspan.patterns import parse_pattern
from longspan_kernels.block_sparse.cache import kept_layouts

CASES = [("BigBird(64, 3, 3, 2)", False), ("Full()", True), ("Local(128) | Strided(128)", True)]
LENGTH, OTHER, LONG, HEADS, WIDTH = 4096, 3000, 16384, 12, 64


def measure(device: str) -> Iterator[dict[str, Any]]:
    """One row a case, setting of LONGSPAN_COMPILE_AHEAD and state of Triton's cache; seconds, and milliseconds of steps."""
    for pattern, causal in CASES:
        for ahead in ("1", "0"):
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    settings = {**os.environ, "LONGSPAN_COMPILE_AHEAD": ahead, "TRITON_CACHE_DIR": cache}
                    command = [sys.executable, "-m", __spec__.name, pattern, str(int(causal)), device]
                    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
                    if done.returncode:
                        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
                    case = {"case": pattern, "causal": causal, "length": LENGTH, "heads": HEADS, "head_dim": WIDTH}
                    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                    yield case | {"compile_ahead": ahead == "1", "cache": state} | found


def first_call(expression: str, causal: bool, device: str) -> dict[str, Any]:
    """Seconds of the first forward and backward pass of a process, of a step again and at another length, and milliseconds of
    one at a length beyond by its own kernels and by general ones."""
    pattern = parse_pattern(expression)

    def leaves(length: int) -> list[torch.Tensor]:
        shape = (1, HEADS, length, WIDTH)
        return [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def seconds(work) -> tuple[float, Any]:
        synchronise(device)
        began = time.perf_counter()
        found = work()
        synchronise(device)
        return time.perf_counter() - began, found

    def attended(given: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = given
        out = sparse_attention(q, k, v, pattern, causal=causal)
        assert isinstance(out, torch.Tensor)
        return out

    def step(given: list[torch.Tensor]) -> Any:
        out = attended(given)
        return torch.autograd.grad(out, given, torch.ones_like(out))

    one = leaves(LENGTH)
    forward, out = seconds(lambda: attended(one))
    backward, _ = seconds(lambda: torch.autograd.grad(out, one, torch.ones_like(out)))
    again, _ = seconds(lambda: step(one))
    other = leaves(OTHER)
    found = {"forward": forward, "backward": backward, "again": again, f"at_{OTHER}": seconds(lambda: step(other))[0]}
    long = leaves(LONG)

    def by(general: bool) -> Any:
        for layout in kept_layouts():
            layout.general_for = dict.fromkeys(layout.general_for, general)
        return step(long)

    step(long)
    timed = time_interleaved({"own": lambda: by(False), "general": lambda: by(True)}, device, 0.3, queued=True)
    return found | {f"{name}_ms_at_{LONG}": one.seconds * 1e3 for name, one in timed.items()}


if __name__ == "__main__":
    print(json.dumps(first_call(sys.argv[1], sys.argv[2] == "1", sys.argv[3])))
