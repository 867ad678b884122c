"""Times what the first call of a pattern waits for, and what its first call at another length does.

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

from longspan.benchmark.timing import synchronise
from longspan.functional import sparse_attention
from longspan.patterns import parse_pattern

CASES = [("BigBird(64, 3, 3, 2)", False), ("Full()", True), ("Local(128) | Strided(128)", True)]
LENGTH, OTHER, LONG, HEADS, WIDTH = 4096, 3000, 16384, 12, 64


def measure(device: str) -> Iterator[dict[str, Any]]:
    """One row a case and state of Triton's disk cache; seconds."""
    for pattern, causal in CASES:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                settings = {**os.environ, "TRITON_CACHE_DIR": cache}
                command = [sys.executable, "-m", __spec__.name, pattern, str(int(causal)), device]
                done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
                case = {"case": pattern, "causal": causal, "length": LENGTH, "heads": HEADS, "head_dim": WIDTH}
                found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                yield case | {"cache": state} | found


def first_call(expression: str, causal: bool, device: str) -> dict[str, Any]:
    """Seconds of the first forward and backward pass of a process, of a step again, and of one at two other lengths."""
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
    found = {"forward": forward, "backward": backward, "again": again}
    for length in (OTHER, LONG):
        given = leaves(length)
        found[f"at_{length}"], _ = seconds(lambda given=given: step(given))
    return found


if __name__ == "__main__":
    print(json.dumps(first_call(sys.argv[1], sys.argv[2] == "1", sys.argv[3])))
