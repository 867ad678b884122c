"""Times a case on both sides in one run, checks that they agree, and keeps the ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from longspan.benchmark import peers
from longspan.benchmark.cases import Case
from longspan.benchmark.timing import peak_memory, time_interleaved
from longspan_kernels.block_sparse.backends import layouts_for

DENSE_PEERS = ("sdpa",)  # compute every pair, so their output is not the pattern's
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 4e-2}


def compare(
    case: Case, names: Iterable[str], device: str, seconds: float = 1.0, memory: bool = True, heated: bool = False
) -> dict[str, Any]:
    """One row: for each side forward and forward + backward, peak memory, live-pair TFLOP/s, peer / longspan ratios, and the
    peer that is fastest in both passes.

    `heated` as for `time_interleaved`. A side that cannot run is kept with the reason instead of figures.
    """
    torch._dynamo.reset()  # else the peers' compilations of earlier cases count against this one's limit
    q, k, v = case.inputs(device)
    gradient = torch.randn(q.shape, device=device).to(case.dtype)
    row: dict[str, Any] = describe(case, device, q, k)
    works: dict[str, Callable[[], Any]] = {}
    outputs: dict[str, Tensor] = {}
    sides: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            attend = peers.find(name)(case, device)
            outputs[name] = attend(q, k, v).detach()
            step = _training_step(attend, q, k, v, gradient)
            step()
        except Exception as error:
            # A peer may fail in its own way (out of memory, no kernel); the row says how and the rest goes on.
            sides[name] = {"unavailable": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}
            continue
        works[f"{name} forward"] = _forward(attend, q, k, v)
        works[f"{name} both"] = step
        sides[name] = {}
    row["agreement"] = agreement(outputs, case)
    measured = time_interleaved(works, device, seconds, queued=True, heated=heated)
    row["heated"] = heated
    live = row["live_pairs"] * case.batch
    for name, side in sides.items():
        if "unavailable" in side:
            continue
        forward, both = measured[f"{name} forward"], measured[f"{name} both"]
        side["forward"], side["both"] = forward.plain(), both.plain()
        if memory:
            side["peak_mib"] = peak_memory(works[f"{name} both"], device) / (1 << 20)
        side["live_tflops_forward"] = 4 * case.head_dim * live / forward.seconds / 1e12
        side["live_tflops_both"] = 14 * case.head_dim * live / both.seconds / 1e12
    row["sides"] = sides
    own = sides.get("longspan", {})
    if "both" in own:
        row["speedup"] = {
            name: {"forward": side["forward"]["ms"] / own["forward"]["ms"], "both": side["both"]["ms"] / own["both"]["ms"]}
            for name, side in sides.items()
            if name != "longspan" and "both" in side
        }
        if row["speedup"]:
            row["best_peer"] = min(row["speedup"], key=lambda name: row["speedup"][name]["both"])
    return row


def describe(case: Case, device: str, q: Tensor, k: Tensor) -> dict[str, Any]:
    backend = "triton" if device.startswith("cuda") else "blocked"
    layout, _, _ = layouts_for(q, k, case.pattern.key, case.causal, backend, 0)
    return {
        "case": case.name,
        "pattern": str(case.pattern)[:300],
        "causal": case.causal,
        "shape": {"B": case.batch, "H": case.heads, "T": case.length, "D": case.head_dim},
        "dtype": str(case.dtype).removeprefix("torch."),
        "live_pairs": layout.live_pairs,
        "visited_pairs": layout.visited_pairs,
        "density": layout.live_pairs / (case.heads * case.length**2),
        "layout_mib": layout.nbytes / (1 << 20),
        "components": [c.order for c in layout.components],
        "dense_scores_mib": case.heads * case.length**2 * 4 / (1 << 20),
    }


def agreement(outputs: dict[str, Tensor], case: Case) -> dict[str, Any]:
    """The largest difference between Longspan's output and each peer that computes the same pattern."""
    if "longspan" not in outputs:
        return {}
    own = outputs["longspan"].float()
    everything = case.pattern.key.startswith("Full")
    found = {}
    for name, out in outputs.items():
        if name == "longspan" or (name.startswith(DENSE_PEERS) and not everything):
            continue
        difference = float((own - out.float()).abs().max())
        found[name] = {"max_difference": difference, "agrees": difference <= TOLERANCE[case.dtype]}
    return found


def _forward(attend, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Any]:
    def work() -> None:
        with torch.no_grad():
            attend(q, k, v)

    return work


def _training_step(attend, q: Tensor, k: Tensor, v: Tensor, gradient: Tensor) -> Callable[[], Any]:
    def work() -> None:
        torch.autograd.grad(attend(q, k, v), (q, k, v), gradient)

    return work
