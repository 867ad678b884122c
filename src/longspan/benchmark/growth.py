"""Times attention variants over lengths, beside the cost that they state.

Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import longspan.attention
from longspan.benchmark.timing import peak_memory, time_interleaved
from longspan.config.errors import BenchmarkError
from longspan.cost import Cost
from longspan.nearest import did_you_mean, listed, nearest

DENSE = "dense"


class Dense(torch.nn.Module):
    """torch's own dense attention, what others are measured by: cuDNN's on a GPU that has it."""

    def __init__(self, heads: int, head_dim: int, causal: bool, max_length: int):
        super().__init__()
        self.causal = causal
        self.cost: Callable[[int], Cost] = longspan.attention.full(
            heads=heads, head_dim=head_dim, causal=causal, max_length=max_length
        ).cost

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, T, D] each -> [B, H, T, D]."""
        order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(order, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


def parse_variant(text: str) -> tuple[str, dict[str, Any]]:
    """`name` or `name:key=value,key=value` of a variant of `longspan.attention`, or `dense`, torch's own.

    Raises:
        BenchmarkError: no such variant, or a setting that is no `key=value`.
    """
    name, _, rest = text.partition(":")
    known = [DENSE, *(word for word in longspan.attention.__all__ if word.islower())]
    if name not in known:
        meant = did_you_mean(nearest(name, known))
        raise BenchmarkError(f"{name!r} is no attention: {listed(known)}; settings follow a colon, local:window=128.{meant}")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise BenchmarkError(f"{part!r} in {text!r} is no setting; give key=value")
        settings[key] = _plain(value)
    return name, settings


def _plain(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "null": None}.get(text, text)


def measure(
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    device: str,
    heads: int = 4,
    head_dim: int = 64,
    causal: bool = True,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    seconds: float = 1.0,
    memory: bool = True,
    each: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """One row a variant and length: medians of a forward pass and of both, FLOPs as the variant states them, growth.

    `ms` is of both passes, `forward_ms` of a forward pass that keeps nothing for another. `exponent` is log(time / time at the
    length before) / log(T / that length): 1 for linear cost, 2 for quadratic. A variant that runs out of memory at a length is
    left out from there on, with a row that says so.

    Args:
        each: called with all rows so far after each length.
    """
    texts = list(texts)
    rows: list[dict[str, Any]] = []
    for length in sorted(lengths):
        works: dict[str, Callable[[], Any]] = {}
        alone: dict[str, Callable[[], Any]] = {}
        modules: dict[str, Any] = {}
        for text in list(texts):
            name, settings = parse_variant(text)
            make = Dense if name == DENSE else getattr(longspan.attention, name)
            module = make(heads=heads, head_dim=head_dim, causal=causal, max_length=length, **settings).to(device)
            try:
                step, forward = _steps(module, length, heads, head_dim, batch, device, dtype)
                step()
            except torch.OutOfMemoryError:
                texts.remove(text)
                rows.append({"variant": text, "T": length, "unavailable": "out of memory"})
                continue
            modules[text], works[text], alone[text] = module, step, forward
        forwards = time_interleaved(alone, device, seconds, queued=True)
        for text, measured in time_interleaved(works, device, seconds, queued=True).items():
            cost = modules[text].cost(length)
            before = next((row for row in reversed(rows) if row["variant"] == text and "ms" in row), None)
            row: dict[str, Any] = {
                "variant": text,
                "T": length,
                "batch": batch,
                "heads": heads,
                "head_dim": head_dim,
                "causal": causal,
                "dtype": str(dtype),
                **measured.plain(),
                "forward_ms": forwards[text].seconds * 1e3,
                "live_pairs": cost.live_pairs,
                "visited_pairs": cost.visited_pairs,
                "forward_flops": cost.total_flops,
            }
            if memory:
                row["peak_mib"] = peak_memory(works[text], device) / (1 << 20)
            if before is not None:
                times = math.log(length / before["T"])
                row["exponent"] = math.log(row["ms"] / before["ms"]) / times
                row["flops_exponent"] = math.log(row["forward_flops"] / before["forward_flops"]) / times
            rows.append(row)
        if each is not None:
            each(rows)
    return rows


def _steps(
    module: torch.nn.Module, length: int, heads: int, head_dim: int, batch: int, device: str, dtype: torch.dtype
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Both passes, and a forward pass alone."""
    q, k, v, dout = (torch.randn(batch, heads, length, head_dim, device=device, dtype=dtype) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def step() -> None:
        torch.autograd.grad(module(*leaves), leaves, dout, allow_unused=True)

    @torch.no_grad()
    def forward() -> None:
        module(*leaves)

    return step, forward
