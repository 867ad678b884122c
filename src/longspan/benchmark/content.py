"""Times variants that choose by content beside dense attention of the same heads, forward and backward, in one run.

Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import longspan.attention
from longspan.benchmark.timing import Work, peak_memory, time_interleaved
from longspan.config.errors import BenchmarkError, ConfigError

WIDTH = 64


@dataclass(frozen=True)
class ContentCase:
    """A causal variant with its settings, of `heads` heads with `kv_heads` heads of keys and values."""

    name: str
    variant: str
    settings: dict[str, Any] = field(default_factory=dict)
    heads: int = 16
    kv_heads: int = 16


_NSA = {"block_size": 64, "top_k": 16, "window": 512}
CASES = (
    ContentCase("nsa 32/2", "nsa", _NSA, 32, 2),
    ContentCase("nsa 16/4", "nsa", _NSA, 16, 4),
    ContentCase("moba 512x3", "moba", {"block_size": 512, "top_k": 3}),
    ContentCase("moba 64x8", "moba", {"block_size": 64, "top_k": 8}),
    ContentCase("dsa 1024", "dsa", {"top_k": 1024, "warmup_steps": 0}, 16, 1),
    ContentCase("reformer", "reformer"),
    ContentCase("routing", "routing"),
    ContentCase("sinkhorn", "sinkhorn"),
)


def measure(
    lengths: Sequence[int], device: str, seconds: float = 1.0, only: Sequence[str] = (), compile: bool | str = False
) -> Iterator[dict[str, Any]]:
    """A row a case and length: ms, host ms and peak MiB of each side, bfloat16 on a GPU and float32 on a CPU.

    The dense side is cuDNN's attention on a GPU and torch's own choice on a CPU. NSA has a third one on a GPU,
    flash-linear-attention's, or the reason why it cannot run.

    Args:
        only: names of cases; all of them unless given.
        compile: whether torch.compile takes the variant's layer, or its mode, such as "reduce-overhead" (CUDA graphs).

    Raises:
        BenchmarkError: a case's settings do not fit a length.
    """
    cases = [case for case in CASES if not only or case.name in only]
    for length in lengths:  # settings that do not fit are found before anything is timed
        for case in cases:
            try:
                _layer(case, length)
            except ConfigError as error:
                words = (
                    f"--lengths {length} is too short for {case.name}; give a longer one, or other cases by --only ({error})"
                )
                raise BenchmarkError(words) from error
    for length in lengths:
        for case in cases:
            if compile:
                torch._dynamo.reset()  # else compilations of earlier cases count against this one's limit, and it runs eagerly
            sides = {"longspan": ours(case, length, device, compile), "dense": dense(case, length, device)}
            missing: dict[str, Any] = {}
            if case.variant == "nsa" and device.startswith("cuda"):
                try:
                    sides["fla"] = fla(case, length, device)
                    sides["fla"]()
                except Exception as error:  # a peer refuses some machines and groups, and raises what it likes
                    sides.pop("fla", None)
                    missing["fla"] = {"unavailable": f"{type(error).__name__}: {error}"[:200]}
            peaks = {name: peak_memory(work, device) for name, work in sides.items()}
            taken = time_interleaved(sides, device, seconds, 15, queued=True)
            yield {
                "case": case.name,
                "settings": case.settings,
                "compiled": compile,
                "shape": {"B": 1, "H": case.heads, "Hkv": case.kv_heads, "T": length, "D": WIDTH},
                "sides": {name: {**taken[name].plain(), "peak_mib": peaks[name] / (1 << 20)} for name in sides} | missing,
                "speedup": taken["dense"].seconds / taken["longspan"].seconds,
                "memory": peaks["longspan"] / max(1, peaks["dense"]),
            }


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    mine, theirs = row["sides"]["longspan"], row["sides"]["dense"]
    host = "" if mine["host_ms"] is None else f", host {mine['host_ms']:.2f} ms"
    return (
        f"{row['case']}, T={row['shape']['T']:,}: {mine['ms']:.2f} ms{host}, {mine['peak_mib']:.0f} MiB; dense "
        f"{theirs['ms']:.2f} ms, {theirs['peak_mib']:.0f} MiB: {row['speedup']:.2f} times as fast"
    )


def _inputs(case: ContentCase, length: int, device: str) -> tuple[list[Tensor], Tensor]:
    """q, k and v with gradients, and the gradient of the output."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    shapes = [(1, heads, length, WIDTH) for heads in (case.heads, case.kv_heads, case.kv_heads, case.heads)]
    q, k, v, gradient = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    return [x.requires_grad_() for x in (q, k, v)], gradient


def _layer(case: ContentCase, length: int) -> torch.nn.Module:
    make = getattr(longspan.attention, case.variant)
    place = {"heads": case.heads, "kv_heads": case.kv_heads, "head_dim": WIDTH, "causal": True, "max_length": length}
    layer: torch.nn.Module = make(**place, **case.settings)
    return layer


def ours(case: ContentCase, length: int, device: str, compile: bool | str = False) -> Work:
    """A training step of the variant's layer: gradients of q, k, v and of its parameters."""
    leaves, gradient = _inputs(case, length, device)
    module = _layer(case, length).to(device)
    q, k, v = leaves
    wanted = [*leaves, *(p for p in module.parameters() if p.requires_grad)]
    layer = torch.compile(module, mode=compile if isinstance(compile, str) else None) if compile else module

    def both() -> None:
        if compile:
            torch.compiler.cudagraph_mark_step_begin()
        torch.autograd.grad(layer(q, k, v), wanted, gradient, allow_unused=True)  # an indexer learns by a loss of its own

    return both


def dense(case: ContentCase, length: int, device: str) -> Work:
    """Causal dense attention of the same heads."""
    leaves, gradient = _inputs(case, length, device)
    q, k, v = leaves
    kernels = [SDPBackend.CUDNN_ATTENTION] if device.startswith("cuda") else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    grouped = case.heads != case.kv_heads

    def both() -> None:
        with sdpa_kernel(kernels):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            torch.autograd.grad(out, leaves, gradient)

    return both


def fla(case: ContentCase, length: int, device: str) -> Work:
    """flash-linear-attention's NSA of the same heads, blocks and picks, without a window, which needs flash-attn 2.

    Its compressed keys are the means of whole blocks, where ours are of blocks that overlap: it does the smaller work.
    """
    from fla.ops.nsa.parallel import parallel_nsa

    leaves, gradient = _inputs(case, length, device)
    q, k, v = leaves = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in leaves]  # [B, T, H, D]
    gates = [torch.full(q.shape[:3], 0.5, device=device, dtype=q.dtype, requires_grad=True) for _ in range(2)]
    size, picks = case.settings["block_size"], case.settings["top_k"]

    def both() -> None:
        out = parallel_nsa(q, k, v, *gates, block_counts=picks, block_size=size)
        torch.autograd.grad(out, [*leaves, *gates], gradient.transpose(1, 2))

    return both
