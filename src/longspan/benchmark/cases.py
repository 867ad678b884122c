"""The patterns that the published comparison times, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from longspan.config.errors import BenchmarkError
from longspan.patterns import BigBird, BlockTable, Fixed, Full, Local, Local2D, Longformer, Pattern, PerHead, Strided


@dataclass(frozen=True)
class Case:
    """One pattern at one size; H heads of width D over T tokens."""

    name: str
    pattern: Pattern
    causal: bool
    length: int
    heads: int
    head_dim: int
    batch: int = 1
    dtype: torch.dtype = torch.bfloat16

    def inputs(self, device: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v [B, H, T, D] with gradients."""
        generator = torch.Generator(device).manual_seed(seed)
        shape = (self.batch, self.heads, self.length, self.head_dim)
        made = [torch.randn(shape, generator=generator, device=device).to(self.dtype) for _ in range(3)]
        q, k, v = (x.requires_grad_() for x in made)
        return q, k, v


def random_table(length: int, density: float, block_size: int = 128) -> BlockTable:
    """An unstructured block table with at least one block a row."""
    blocks = -(-length // block_size)
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(blocks, blocks, generator=generator) < density
    table[torch.arange(blocks), torch.randint(blocks, (blocks,), generator=generator)] = True
    return BlockTable(table, block_size)


def per_head_quarters(heads: int) -> PerHead:
    """A quarter of the heads each local, strided, BigBird and full."""
    quarter = max(1, heads // 4)
    parts: list[Pattern] = [Local(512), Strided(128), BigBird(128, 3, 3, 2), Full()]
    return PerHead([parts[min(3, h // quarter)] for h in range(heads)])


def square(length: int) -> tuple[int, int]:
    """Rows and columns of a square image of `length` tokens."""
    side = math.isqrt(length)
    if side * side != length:
        raise BenchmarkError(f"length {length} is no square image; give a square number such as {side * side}")
    return side, side


def named(name: str, length: int, heads: int) -> tuple[Pattern, bool]:
    """A pattern of the published comparison, and whether it is causal."""
    known: dict[str, tuple[Any, bool]] = {
        "full": (lambda: Full(), False),
        "causal": (lambda: Full(), True),
        "local 512 causal": (lambda: Local(512), True),
        "local 256 a side": (lambda: Local(512), False),
        "bigbird 128": (lambda: BigBird(128, 3, 3, 2), False),
        "bigbird 64": (lambda: BigBird(64, 3, 3, 2), False),
        "longformer": (lambda: Longformer(512, tuple(range(64))), False),
        "fixed causal": (lambda: Fixed(128, 32), True),
        "local or strided causal": (lambda: Local(128) | Strided(128), True),
        "per head": (lambda: per_head_quarters(heads), False),
        "natten 13": (lambda: Local2D(*square(length), 13, edges="shift"), False),
        "natten 7 dilated": (lambda: Local2D(*square(length), 7, 4, "shift"), False),
        "table 0.05": (lambda: random_table(length, 0.05), False),
    }
    if name not in known:
        raise BenchmarkError(
            f"case {name!r} is unknown; choose one of {', '.join(known)}, or write a pattern: Local(256) | Strided(128)"
        )
    make, causal = known[name]
    return make(), causal
