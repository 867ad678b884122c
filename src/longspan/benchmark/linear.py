"""Times linear attention and the gated delta rule beside flash-linear-attention, forward and backward, in one run.

Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from longspan.benchmark.timing import Work, peak_memory, time_interleaved
from longspan_kernels.linear import gated_delta_rule, linear_attention

HEADS, WIDTH = 16, 64
OPS = ("linear", "gated", "delta")
LONGEST_WITH_PEER = {"cuda": 1 << 17, "cpu": 1 << 14}  # full attention of 65,536 tokens takes a CPU minutes


def measure(lengths: Sequence[int], device: str, seconds: float = 1.0, ops: Sequence[str] = OPS) -> Iterator[dict[str, Any]]:
    """A row an op and length: ms forward and with backward, peak MiB, on each side; a peer that fails says why.

    Args:
        ops: "linear" has no decay, "gated" one for each token and head, "delta" is the gated delta rule.
    """
    longest = LONGEST_WITH_PEER.get(torch.device(device).type, max(LONGEST_WITH_PEER.values()))
    for op in ops:
        for length in lengths:
            sides: dict[str, tuple[Callable[[], Tensor], Work]] = {}
            row: dict[str, Any] = {"case": op, "shape": {"B": 1, "H": HEADS, "T": length, "D": WIDTH}, "sides": {}}
            for name, make in (("longspan", _ours), ("fla", _fla), ("sdpa", _sdpa)):
                if name == "fla" and length > longest:
                    continue
                if name == "sdpa" and (op != "linear" or length > longest):
                    continue
                try:
                    sides[name] = make(op, length, device)
                    sides[name][1]()
                except Exception as error:  # a peer refuses some machines and raises what it likes
                    if name == "longspan":
                        raise
                    sides.pop(name, None)
                    row["sides"][name] = {"unavailable": f"{type(error).__name__}: {error}"[:200]}
            peaks = {name: peak_memory(both, device) for name, (_, both) in sides.items()}
            forward = time_interleaved({n: _without_graph(f) for n, (f, _) in sides.items()}, device, seconds, 30, queued=True)
            both = time_interleaved({n: b for n, (_, b) in sides.items()}, device, seconds, 30, queued=True)
            for name in sides:
                row["sides"][name] = {
                    "forward": forward[name].plain(),
                    "both": both[name].plain(),
                    "peak_mib": peaks[name] / (1 << 20),
                }
            row["speedup"] = {n: both[n].seconds / both["longspan"].seconds for n in sides if n != "longspan"}
            yield row


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    sides = [
        f"{name} {side['forward']['ms']:.3f} / {side['both']['ms']:.3f} ms, {side['peak_mib']:.0f} MiB"
        if "both" in side
        else f"{name}: {side['unavailable']}"
        for name, side in row["sides"].items()
    ]
    return f"{row['case']}, T={row['shape']['T']:,}: {', '.join(sides)}"


def _without_graph(forward: Callable[[], Tensor]) -> Work:
    def run() -> None:
        with torch.no_grad():
            forward()

    return run


def _inputs(op: str, length: int, device: str, tokens_first: bool) -> tuple[list[Tensor], Tensor]:
    """q, k, v and what the op takes beside them, and the gradient that comes in; [B, H, T, D], or [B, T, H, D]."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    shape = (1, length, HEADS, WIDTH) if tokens_first else (1, HEADS, length, WIDTH)
    q, k, v, gradient = (torch.randn(shape, device=device) for _ in range(4))
    q, k = (F.normalize(x, dim=-1) for x in (q, k)) if op == "delta" else (q * WIDTH**-0.5, k * WIDTH**-0.5)
    given = [x.to(dtype) for x in (q, k, v)]
    if op != "linear":
        given.append(-0.05 * torch.rand(shape[:3], device=device))
    if op == "delta":
        given.append(torch.rand(shape[:3], device=device))
    return [x.requires_grad_() for x in given], gradient.to(dtype)


def _pair(function: Callable[[], Tensor], leaves: list[Tensor], gradient: Tensor) -> tuple[Callable[[], Tensor], Work]:
    def both() -> None:
        torch.autograd.grad(function(), leaves, gradient)

    return function, both


def _ours(op: str, length: int, device: str) -> tuple[Callable[[], Tensor], Work]:
    leaves, gradient = _inputs(op, length, device, False)
    q, k, v, *more = leaves
    if op == "delta":
        return _pair(lambda: cast(Tensor, gated_delta_rule(q, k, v, more[1], more[0])), leaves, gradient)
    decay = more[0] if more else None
    return _pair(lambda: cast(Tensor, linear_attention(q, k, v, log_decay=decay)), leaves, gradient)


def _fla(op: str, length: int, device: str) -> tuple[Callable[[], Tensor], Work]:
    leaves, gradient = _inputs(op, length, device, True)
    q, k, v, *more = leaves
    if op == "linear":
        from fla.ops.linear_attn import chunk_linear_attn

        return _pair(lambda: chunk_linear_attn(q, k, v, normalize=False)[0], leaves, gradient)
    if op == "gated":
        from fla.ops.simple_gla import chunk_simple_gla

        return _pair(lambda: chunk_simple_gla(q, k, v, g=more[0])[0], leaves, gradient)
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    return _pair(lambda: chunk_gated_delta_rule(q, k, v, g=more[0], beta=more[1])[0], leaves, gradient)


def _sdpa(op: str, length: int, device: str) -> tuple[Callable[[], Tensor], Work]:
    leaves, gradient = _inputs(op, length, device, False)
    q, k, v = leaves
    return _pair(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), leaves, gradient)
