"""Patterns as FlexAttention mask_mods, written as its users would: comparisons where they serve, a block table where not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longspan.benchmark.cases import Case
from longspan.patterns import (
    BigBird,
    BlockTable,
    Fixed,
    Full,
    Global,
    Intersection,
    Local,
    Local2D,
    Longformer,
    Pattern,
    PerHead,
    Predicate,
    Random,
    Strided,
    Union,
)

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask_mod_of(case: Case, device: str) -> tuple[MaskMod, bool]:
    """The mask_mod of a case, causal included, and whether it differs by head."""
    mod = _mod(case.pattern, case, device)
    per_head = isinstance(case.pattern, (PerHead, BigBird, Random)) or "random" in case.pattern.key.lower()
    if case.causal:
        return (lambda b, h, i, j: mod(b, h, i, j) & (i >= j)), per_head
    return mod, per_head


def _mod(pattern: Pattern, case: Case, device: str) -> MaskMod:
    if isinstance(pattern, Full):
        return lambda b, h, i, j: i >= 0
    if isinstance(pattern, Local):
        return _local(pattern, case.causal)
    if isinstance(pattern, Local2D):
        return neighbourhood(pattern.height, pattern.width, pattern.window // 2, pattern.dilation, pattern.edges == "shift")
    if isinstance(pattern, Strided):
        stride = pattern.stride
        return lambda b, h, i, j: (i - j) % stride == 0
    if isinstance(pattern, Fixed):
        stride, last = pattern.stride, pattern.summary
        return lambda b, h, i, j: (i // stride == j // stride) | (j % stride >= stride - last)
    if isinstance(pattern, Predicate):
        return pattern.mask_mod
    if isinstance(pattern, Longformer):
        return _any([_local(Local(pattern.window), case.causal), _positions(pattern.global_positions, case, device)])
    if isinstance(pattern, Global):
        wanted = range(pattern.first) if pattern.first else pattern.positions
        return _positions(tuple(wanted or ()), case, device)
    if isinstance(pattern, (BigBird, Random, BlockTable)):
        return _blocks(pattern, case, device)
    if isinstance(pattern, PerHead):
        return _by_head([_mod(p, case, device) for p in pattern.patterns], pattern, device)
    if isinstance(pattern, Union):
        return _any([_mod(p, case, device) for p in pattern.parts])
    if isinstance(pattern, Intersection):
        parts = [_mod(p, case, device) for p in pattern.parts]
        return lambda b, h, i, j: _fold(parts, b, h, i, j, torch.Tensor.__and__)
    raise TypeError(f"no mask_mod for {pattern}")


def _local(pattern: Local, causal: bool) -> MaskMod:
    dilation = pattern.dilation
    reach = pattern.window * dilation if causal else pattern.window // 2 * dilation
    if causal:
        return lambda b, h, i, j: (i - j < reach) & ((i - j) % dilation == 0) if dilation > 1 else i - j < reach
    if dilation > 1:
        return lambda b, h, i, j: (i - j <= reach) & (j - i <= reach) & ((i - j) % dilation == 0)
    return lambda b, h, i, j: (i - j <= reach) & (j - i <= reach)


def neighbourhood(height: int, width: int, reach: int, dilation: int, shifted: bool) -> MaskMod:
    """`reach` steps of `dilation` on each side in both directions; `shifted` as NATTEN has it: near an edge the window's
    centre stays `reach` steps away from it, among the coordinates of the query's residue of `dilation`."""

    def near(i: Tensor, j: Tensor, size: int) -> Tensor:
        if not shifted:
            apart = (i - j).abs() <= reach * dilation
            return apart if dilation == 1 else apart & ((i - j) % dilation == 0)
        if dilation == 1:
            return (i.clamp(reach, size - 1 - reach) - j).abs() <= reach
        last = (size - 1 - i % dilation) // dilation  # the last place among those of the query's residue
        centre = torch.minimum((i // dilation).clamp(min=reach), last - reach)
        return (i % dilation == j % dilation) & ((centre - j // dilation).abs() <= reach)

    return lambda b, h, i, j: near(i // width, j // width, height) & near(i % width, j % width, width)


def _positions(positions, case: Case, device: str) -> MaskMod:
    chosen = sorted(p for p in positions if p < case.length)
    if chosen == list(range(len(chosen))):
        first = len(chosen)
        return lambda b, h, i, j: (i < first) | (j < first)
    flags = torch.zeros(case.length, dtype=torch.bool, device=device)
    flags[chosen] = True
    return lambda b, h, i, j: flags[i] | flags[j]


def _blocks(pattern, case: Case, device: str) -> MaskMod:
    """The block table [H, blocks, blocks], read off the pattern one position a block."""
    size = pattern.block_size
    blocks = -(-case.length // size)
    first = torch.arange(blocks, device=device) * size
    table = torch.zeros(case.heads, blocks, blocks, dtype=torch.bool, device=device)
    for heads, rule in pattern.head_rules(case.length, case.length, case.heads, False, torch.device(device)):
        for head in heads:
            table[head] = rule.live(head, first[:, None], first[None, :])
    return lambda b, h, i, j: table[h, i // size, j // size]


def _by_head(mods: list[MaskMod], pattern: PerHead, device: str) -> MaskMod:
    # Each distinct pattern is evaluated and the head's own one chosen.
    keys = [p.key for p in pattern.patterns]
    distinct = list(dict.fromkeys(keys))
    chosen = torch.tensor([distinct.index(key) for key in keys], device=device)
    own = [mods[keys.index(key)] for key in distinct]

    def mod(b, h, i, j):
        out = own[0](b, h, i, j) & (chosen[h] == 0)
        for place in range(1, len(own)):
            out = out | (own[place](b, h, i, j) & (chosen[h] == place))
        return out

    return mod


def _any(mods: list[MaskMod]) -> MaskMod:
    return lambda b, h, i, j: _fold(mods, b, h, i, j, torch.Tensor.__or__)


def _fold(mods: list[MaskMod], b, h, i, j, join) -> Tensor:
    out = mods[0](b, h, i, j)
    for mod in mods[1:]:
        out = join(out, mod(b, h, i, j))
    return out
