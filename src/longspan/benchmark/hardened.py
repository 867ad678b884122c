"""Time of patterns that heads have learned, beside a window of equal density.

Legend: B batch, H heads, T tokens, D head width, G gates of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.attention.base import PatternAttention
from longspan.attention.learned.candidates import Candidates
from longspan.attention.learned.patterns import plain_pattern
from longspan.benchmark.timing import time_interleaved
from longspan.config.errors import BenchmarkError
from longspan.patterns import Local, Pattern
from longspan.records import Record


@dataclass(frozen=True)
class Learned:
    """Gates that are open once a model's patterns have hardened.

    Attributes:
        name: what they come from.
        candidates: what the gates stand for.
        layers: [H, G] bool for each layer.
    """

    name: str
    candidates: Candidates
    layers: tuple[Tensor, ...]

    def patterns(self, heads: int) -> list[Pattern]:
        """A plain pattern a layer, its heads repeated up to `heads`."""
        return [plain_pattern(self.candidates, _repeated(gates, heads)) for gates in self.layers]


def of_record(record: Record, length: int, name: str, stretch: bool = False) -> Learned:
    """The connections that a run's record states, for sequences of `length` tokens.

    `stretch`: in blocks as many times longer as the sequences are, so that the density stays; else in the run's own blocks,
    at the same distances in tokens.

    Raises:
        BenchmarkError: the run learned no such pattern, or it does not fit the length.
    """
    tables = record.extra.get("learned_pattern", {}).get("connections")
    if not tables:
        raise BenchmarkError(f"{name}: its record holds no learned connections; give runs with attention=learned")
    chosen, trained = record.config["attention"], int(record.config["data"]["max_length"])
    factor = length // trained if stretch else 1
    if stretch and factor * trained != length:
        raise BenchmarkError(f"{name}: {length} tokens are no multiple of the {trained} that it was trained with")
    candidates = Candidates(
        length,
        bool(record.config["task"].get("causal", True)),
        chosen["block_size"] * factor,
        chosen["offsets"],
        chosen["global_blocks"],
        tuple(chosen["strides"]),
        chosen["stride_from"],
    )
    places = {gate: place for place, gate in enumerate(candidates.names)}
    layers = []
    for heads in tables:
        gates = torch.zeros(len(heads), candidates.gates, dtype=torch.bool)
        for head in heads:
            for gate in head["open"]:
                if gate not in places:
                    raise BenchmarkError(f"{name}: {length} tokens have no gate {gate!r}; give at least {trained} tokens")
                gates[head["head"], places[gate]] = True
        layers.append(gates)
    return Learned(name, candidates, tuple(layers))


def at_random(length: int, heads: int, density: float, block_size: int = 64, causal: bool = True, seed: int = 0) -> Learned:
    """Gates drawn at random for each head, up to the density: offsets that no window or stride has in common."""
    candidates = Candidates(length, causal, block_size, global_blocks=1)
    pairs, budget = candidates.pairs(length), density * length**2
    generator = torch.Generator().manual_seed(seed)
    gates = torch.zeros(heads, candidates.gates, dtype=torch.bool)
    for row in gates:
        kept = 0
        for gate in torch.randperm(candidates.gates, generator=generator).tolist():
            if kept + int(pairs[gate]) <= budget:
                row[gate] = True
                kept += int(pairs[gate])
    return Learned(f"at random, density {density:g}", candidates, (gates,))


def equal_window(live: int, length: int, heads: int, causal: bool) -> Local:
    """The narrowest window with at least `live` pairs over all heads."""
    low, high = 1, 2 * length
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if Local(middle).live_pairs(length, heads=heads, causal=causal) >= live else (middle + 1, high)
        )
    return Local(low)


def measure(
    found: Sequence[Learned],
    *,
    device: str,
    heads: int = 16,
    head_dim: int = 64,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    seconds: float = 0.5,
    keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """One row a learned model: times of its layers and of a window of equal density, forward and forward + backward.

    `ratio`: the layers' times together over the window's for as many layers. `keep` gets the rows after each.
    """
    rows: list[dict[str, Any]] = []
    for learned in found:
        length, causal = learned.candidates.length, learned.candidates.causal
        patterns = learned.patterns(heads)
        live = [pattern.live_pairs(length, heads=heads, causal=causal) for pattern in patterns]
        window = equal_window(-(-sum(live) // len(live)), length, heads, causal)
        sides = {f"layer {layer}": pattern for layer, pattern in enumerate(patterns)} | {
            f"local, window {window.window}": window
        }
        modules = {
            side: PatternAttention(pattern, heads=heads, head_dim=head_dim, causal=causal).to(device)
            for side, pattern in sides.items()
        }
        inputs = [torch.randn(batch, heads, length, head_dim, device=device, dtype=dtype) for _ in range(4)]
        row: dict[str, Any] = {
            "learned": learned.name,
            "T": length,
            "batch": batch,
            "heads": heads,
            "head_dim": head_dim,
            "causal": causal,
            "dtype": str(dtype),
            "block_size": learned.candidates.block_size,
            "density": sum(live) / len(live) / heads / length**2,
            "sides": {},
        }
        for side, module in modules.items():
            cost = module.cost(length)
            row["sides"][side] = {
                "density": cost.live_pairs / heads / length**2,
                "live_pairs": cost.live_pairs,
                "visited_pairs": cost.visited_pairs,
            }
        *layers, reference = modules
        for kind, work in (("forward", _forward), ("both", _both)):
            works = {side: work(modules[side], inputs) for side in modules}
            times = time_interleaved(works, device, seconds, queued=True)
            for side, one in times.items():
                plain = one.plain()
                row["sides"][side][kind] = {key: plain[key] for key in ("ms", "ms_low", "ms_high", "samples", "host_ms")}
            together = sum(times[side].seconds for side in layers)
            row[f"ratio_{kind}"] = together / (len(layers) * times[reference].seconds)
        rows.append(row)
        keep(rows)
    return rows


def _repeated(gates: Tensor, heads: int) -> Tensor:
    if heads % len(gates):
        raise BenchmarkError(f"{heads} heads are no multiple of the {len(gates)} that were trained; give one")
    return gates.repeat(heads // len(gates), 1)


def _forward(module: PatternAttention, inputs: Sequence[Tensor]) -> Callable[[], object]:
    q, k, v, _ = inputs

    def work() -> None:
        with torch.no_grad():
            module(q, k, v)

    return work


def _both(module: PatternAttention, inputs: Sequence[Tensor]) -> Callable[[], object]:
    leaves, grad = [x.detach().requires_grad_() for x in inputs[:3]], inputs[3]

    def work() -> None:
        torch.autograd.grad(module(*leaves), leaves, grad)

    return work
