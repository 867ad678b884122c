"""Times both ways in which a CPU attends, and fits the model of their time by which `backend="auto"` chooses.

python scripts/benchmark.py --suite cpu-choice --threads 2 -o benchmarks/cpu_choice.json
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from longspan.config.errors import BenchmarkError
from longspan.functional import sparse_attention
from longspan.patterns import BigBird, Fixed, Full, Local, Longformer, Pattern, Strided
from longspan_kernels.block_sparse import backends as cpu_choice
from longspan_kernels.block_sparse import clear_layouts
from longspan_kernels.block_sparse.fused import dense_backward, dense_forward

PATTERNS: dict[str, Pattern] = {
    "full": Full(),
    "local 64": Local(64),
    "local 256": Local(256),
    "bigbird 64": BigBird(64),
    "bigbird 16": BigBird(16),
    "strided 64": Strided(64),
    "fixed 128": Fixed(128, 4),
    "longformer 128": Longformer(128, tuple(range(16))),
    "sparse transformer": Local(64) | Strided(64),
}
LENGTHS, HEADS, WIDTHS = (256, 512, 1024, 2048), 4, (32, 64)
ROUNDS = 5


def measure() -> Iterator[dict[str, Any]]:
    """A row for each pattern, length, width and direction: what both ways take, in milliseconds, beside their features."""
    for name, pattern in PATTERNS.items():
        for length in LENGTHS:
            for width, causal in ((WIDTHS[0], False), (WIDTHS[1], True)):
                shape = cpu_choice.Shape(1, HEADS, length, length, width)
                g = torch.Generator().manual_seed(length + width)
                tensors = [torch.randn(1, HEADS, length, width, generator=g) for _ in range(4)]
                row: dict[str, Any] = {"pattern": name, "T": length, "D": width, "H": HEADS, "causal": causal}
                ways: dict[str, Callable[..., dict[str, float]]] = {"dense": _dense, "blocked": _blocked}
                for way, timed in ways.items():
                    features = getattr(cpu_choice, f"{way}_features")(pattern.key, shape, causal)
                    row[way] = {"features": features, **timed(pattern, tensors, causal)}
                clear_layouts()
                yield row


def _median(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _blocked(pattern: Pattern, tensors: list[Tensor], causal: bool) -> dict[str, float]:
    leaves = [x.clone().requires_grad_() for x in tensors[:3]]
    dout = tensors[3]

    def forward() -> Tensor:
        out = sparse_attention(leaves[0], leaves[1], leaves[2], pattern, causal=causal, backend="blocked")
        assert isinstance(out, Tensor)
        return out

    out = forward()
    with torch.no_grad():
        ahead = _median(forward)
    return {"forward": ahead, "backward": _median(lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True))}


def _dense(pattern: Pattern, tensors: list[Tensor], causal: bool) -> dict[str, float]:
    from longspan_kernels.block_sparse.args import Options

    q, k, v, dout = tensors
    options = Options(q.shape[-1] ** -0.5)
    out, lse = dense_forward(q, k, v, pattern.key, causal, options)
    return {
        "forward": _median(lambda: dense_forward(q, k, v, pattern.key, causal, options)),
        "backward": _median(lambda: dense_backward(dout, None, q, k, v, out, lse, pattern.key, causal, options)),
    }


def fit(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Non-negative microseconds for each feature, least squares of relative errors: short calls count as long ones do."""
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise BenchmarkError("--suite cpu-choice fits with scipy: pip install scipy") from None
    constants: dict[str, dict[str, list[float]]] = {}
    for way in ("dense", "blocked"):
        features = np.array([row[way]["features"] for row in rows])
        constants[way] = {}
        for which in ("forward", "backward"):
            measured = np.array([row[way][which] for row in rows]) * 1000
            solution, _ = nnls(features / measured[:, None], np.ones(len(rows)))
            constants[way][which] = [float(f"{x:.3g}") for x in solution]
    return constants


def judged(rows: list[dict[str, Any]], constants: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """The rows with the choice by these constants, and how much longer it takes than the quicker way."""
    for row in rows:
        for which in ("forward", "backward"):
            model = {way: float(np.dot(constants[way][which], row[way]["features"])) for way in ("dense", "blocked")}
            choice = min(model, key=lambda way: model[way])
            best = min(row["dense"][which], row["blocked"][which])
            row[which] = {"choice": choice, "of_the_quicker": round(row[choice][which] / best, 3)}
    return rows


def run(console: Console) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and fitted constants, each row printed as it is known."""
    rows = []
    for row in measure():
        rows.append(row)
        sides = ", ".join(f"{way} {row[way]['forward']:.2f} + {row[way]['backward']:.2f} ms" for way in ("dense", "blocked"))
        console.print(
            f"{row['pattern']}, T={row['T']}, D={row['D']}, {'causal' if row['causal'] else 'both ways'}: {sides}",
            soft_wrap=True,
        )
    constants = fit(rows)
    judged(rows, constants)
    for way, passes in constants.items():
        for which, values in passes.items():
            console.print(f"{way} {which}: {dict(zip(cpu_choice.FEATURES, values, strict=True))}", soft_wrap=True)
    for which in ("forward", "backward"):
        waste = [row[which]["of_the_quicker"] for row in rows]
        console.print(
            f"{which}: the choice takes {statistics.mean(waste):.2f} of the quicker way's time, at most {max(waste):.2f}"
        )
    return rows, {"constants": constants, "features": list(cpu_choice.FEATURES), "threads": torch.get_num_threads()}
