"""The comparisons that Longspan publishes, each with its sizes and peers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from longspan.benchmark.cases import Case, named
from longspan.config.errors import BenchmarkError
from longspan.patterns import BigBird, Local, Pattern, Strided

FLEX = ("longspan", "flex", "flex-flash")


@dataclass(frozen=True)
class Plan:
    """A case with the sides to time it on; `heated` where its time is compared with that of another length."""

    case: Case
    sides: tuple[str, ...]
    heated: bool = False


def cpu() -> list[Plan]:
    """float32 on a CPU, H=8, D=64: sparse patterns beside full SDPA at T=8192, and their growth to T=65536."""
    plans = []
    patterns: dict[str, Pattern] = {"local 256": Local(256), "bigbird 64": BigBird(64, 3, 3, 2), "strided 128": Strided(128)}
    for name, pattern in patterns.items():
        plans.append(Plan(Case(name, pattern, False, 8192, 8, 64, dtype=torch.float32), ("longspan", "sdpa")))
    for name in ("local 256", "bigbird 64"):
        for length in (16384, 65536):
            plans.append(Plan(Case(name, patterns[name], False, length, 8, 64, dtype=torch.float32), ("longspan",)))
    return plans


def gpu() -> list[Plan]:
    """bf16, H*D = 2048, T=16384: every pattern beside FlexAttention on both of its kernels; full and causal beside cuDNN,
    torch's flash and FlashAttention-4 too, which has windows as well. A peer that is not installed is kept with the reason."""
    plans = []
    for name in ("full", "causal"):
        for width in (64, 128):
            plans.append(_gpu(name, 16384, width, (*FLEX, "fa4", "sdpa-cudnn", "sdpa-flash")))
    for name in (
        "local 512 causal",
        "local 256 a side",
        "bigbird 128",
        "bigbird 64",
        "longformer",
        "fixed causal",
        "local or strided causal",
        "per head",
        "table 0.05",
    ):
        windowed = name in ("local 512 causal", "local 256 a side")
        plans.append(_gpu(name, 16384, 64, (*FLEX, "fa4") if windowed else FLEX))
    return plans


def gpu_long() -> list[Plan]:
    """bf16, T=131072 beside FlexAttention; growth of local to a million tokens, both lengths alone."""
    plans = [_gpu(name, 131072, 128, ("longspan", "flex")) for name in ("local or strided causal", "bigbird 128")]
    plans.append(_gpu("local 512 causal", 131072, 64, ("longspan", "flex")))
    growth = (_gpu("local 512 causal", length, 64, ("longspan",)) for length in (131072, 1 << 20))
    plans += [replace(plan, heated=True) for plan in growth]
    return plans


def image() -> list[Plan]:
    """bf16, H*D = 2048, images of 128 x 128 and 256 x 256 tokens: neighbourhoods beside FlexAttention with NATTEN's mask."""
    names = ("natten 13", "natten 7 dilated")
    return [_gpu(name, side * side, 64, ("longspan", "flex")) for side in (128, 256) for name in names]


def _gpu(name: str, length: int, width: int, sides: tuple[str, ...]) -> Plan:
    heads = 2048 // width
    pattern, causal = named(name, length, heads)
    return Plan(Case(f"{name} D={width}", pattern, causal, length, heads, width), sides)


SUITES = {"cpu": cpu, "gpu": gpu, "gpu-long": gpu_long, "image": image}


def suite(name: str) -> list[Plan]:
    if name not in SUITES:
        raise BenchmarkError(f"suite {name!r} is unknown; choose one of {', '.join(SUITES)}")
    return SUITES[name]()
