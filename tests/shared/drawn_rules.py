"""Hypothesis strategies for rules and whole attention calls, shared by the tests of every backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from longspan_kernels.block_sparse.block_rules import BlockBand, BlockLists, BlockTableRule, PastBlocks
from longspan_kernels.block_sparse.plane import Neighbourhood
from longspan_kernels.block_sparse.rules import (
    And,
    Arbitrary,
    Band,
    Congruent,
    Everything,
    Keys,
    KeysPeriodic,
    Or,
    Queries,
    Rule,
)

HEADS = 2


@st.composite
def atoms(draw) -> Rule:
    kind = draw(st.integers(0, 11))
    low = st.none() | st.integers(-12, 6)
    if kind == 0:
        return Band(draw(low), draw(st.none() | st.integers(0, 70)))
    if kind == 1:
        return Congruent(draw(st.sampled_from([2, 3, 7, 16, 41])))
    if kind == 2:
        return BlockBand(draw(st.sampled_from([5, 16, 32])), draw(st.sampled_from([None, -1, 0])), draw(st.integers(0, 2)))
    if kind in (3, 4):
        a, n = draw(st.integers(0, 90)), draw(st.integers(1, 9))
        return (Keys if kind == 3 else Queries)([(a, a + n), (a + 30, a + 33)])
    if kind == 5:
        stride = draw(st.integers(2, 20))
        return KeysPeriodic(stride, draw(st.integers(1, stride)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    if kind == 6:
        return BlockLists(8, torch.randint(-1, 20, (HEADS, 40, 3), generator=generator))
    if kind == 7:
        return BlockTableRule(16, torch.rand(draw(st.sampled_from([1, HEADS])), 20, 20, generator=generator) < 0.2)
    if kind == 8:
        a = draw(st.integers(2, 9))
        return Arbitrary(lambda h, i, j: (i * 7 + j * 3 + h) % a == 0)
    if kind == 10:
        return PastBlocks(draw(st.integers(1, 20)), draw(st.integers(-10, 40)), draw(st.integers(-60, 60)))
    if kind == 9:
        width, reach, dilation = draw(st.integers(1, 14)), draw(st.integers(0, 4)), draw(st.sampled_from([1, 1, 2, 3]))
        height = -(-110 // width)
        fits = (2 * reach + 1) * dilation <= min(height, width)
        return Neighbourhood(height, width, reach, dilation, fits and draw(st.booleans()))
    return Everything()


def rules() -> st.SearchStrategy[Rule]:
    return st.recursive(
        atoms(),
        lambda inner: st.builds(
            lambda parts, kind: kind(*parts), st.lists(inner, min_size=2, max_size=3), st.sampled_from([And, Or])
        ),
        max_leaves=4,
    )


@st.composite
def lengths(draw, most: int = 110) -> tuple[int, int]:
    q_len = draw(st.integers(1, most))
    k_len = draw(st.one_of(st.just(q_len), st.integers(1, most)))
    return q_len, k_len


@dataclass
class Call:
    """One drawn attention call; `groups` as compile_layout takes them, `mask` the dense definition."""

    groups: list[tuple[tuple[int, ...], Rule]]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor
    extras: dict

    def __repr__(self) -> str:
        shapes = f"q {tuple(self.q.shape)}, k {tuple(self.k.shape)}"
        return f"Call({[(heads, describe(rule)) for heads, rule in self.groups]}, {shapes}, {sorted(self.extras)})"


def describe(rule: Rule) -> str:
    parts = getattr(rule, "parts", None)
    inner = (
        ", ".join(map(describe, parts))
        if parts
        else ", ".join(f"{a}={b!r}" for a, b in vars(rule).items() if isinstance(b, int))
    )
    return f"{type(rule).__name__}({inner})"


@st.composite
def calls(draw, most: int = 110, widths=(16, 5), dtype=torch.float64, bias: bool = False) -> Call:
    q_len, k_len = draw(lengths(most))
    batch, share = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 2)]))
    rule = draw(rules())
    if draw(st.booleans()):
        rule = And(rule, Band(0, None))
    # Heads either share the drawn rule or the second one has a rule of its own.
    groups = [((0, 1), rule)] if draw(st.booleans()) else [((0,), rule), ((1,), draw(atoms()))]
    width = draw(st.sampled_from(widths))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    # Heads last but one in memory, as a fused projection leaves them.
    q = torch.randn(batch, q_len, HEADS, width, generator=g, dtype=dtype).transpose(1, 2)
    k = torch.randn(batch, HEADS // share, k_len, width, generator=g, dtype=dtype)
    v = torch.randn(batch, HEADS // share, k_len, width, generator=g, dtype=dtype)
    i = torch.arange(q_len)[:, None] + (k_len - q_len)
    j = torch.arange(k_len)[None, :]
    mask = torch.stack([next(r for heads, r in groups if h in heads).live(h, i, j) for h in range(HEADS)])
    extras: dict = {"scale": 0.3}
    if draw(st.booleans()):
        extras |= {
            "q_lengths": torch.randint(0, q_len + 1, (batch,), generator=g),
            "k_lengths": torch.randint(0, k_len + 1, (batch,), generator=g),
        }
    if draw(st.booleans()):
        extras |= {
            "q_segments": torch.randint(0, 3, (batch, q_len), generator=g),
            "k_segments": torch.randint(0, 3, (batch, k_len), generator=g),
        }
    if draw(st.booleans()):
        extras |= {"dropout_p": 0.3, "seed": torch.tensor([draw(st.integers(0, 1 << 31))])}
    if bias:
        first = (k_len - q_len) // 32
        rows, columns = (k_len - 1) // 32 - first + 1, (k_len - 1) // 32 + 1
        shape = (draw(st.sampled_from([1, HEADS])), rows, columns)
        extras |= {"bias": torch.randn(shape, generator=g, dtype=dtype), "bias_block": 32}
    return Call(groups, q, k, v, mask, extras)
