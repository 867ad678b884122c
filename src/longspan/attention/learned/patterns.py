"""Open gates as patterns: compact ones that follow the gates through training, and the plain one they harden into.

Legend: H heads, G gates, nb blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longspan.attention.learned.candidates import Candidates
from longspan.patterns import BlockTable, Pattern, PerHead, Strided
from longspan.patterns.base import causal_part
from longspan.patterns.without import Without
from longspan_kernels.block_sparse import And, BlockTableRule, Congruent, Not, Or, Rule


@dataclass(frozen=True, eq=False, repr=False)
class OpenBlocks(Pattern):
    """The pairs of open block gates, without what residue classes claim.

    It holds a bit a gate and no table: training makes many of them, and patterns live as long as their process.

    Attributes:
        candidates: what the gates stand for.
        bits: a row of 0 and 1 a head.
    """

    candidates: Candidates
    bits: tuple[str, ...]

    @property
    def head_count(self) -> int | None:
        return len(self.bits) if len(self.bits) > 1 else None

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        c = self.candidates
        # Heads that share their gates share one list of blocks.
        rows = self.bits if len(set(self.bits)) > 1 else self.bits[:1]
        open_gates = torch.tensor([[bit == "1" for bit in row] for row in rows], device=device)
        table = open_gates[:, c.block_gates(k_len, device)]  # (H or 1, nb, nb)
        rule: Rule = BlockTableRule(c.block_size, table)
        if c.strides:
            far = BlockTableRule(c.block_size, c.far()[None].to(device))
            rule = And(rule, Not(Or(*(And(Congruent(stride), far) for stride in c.strides))))
        return causal_part(rule, causal)


def open_blocks(candidates: Candidates, open_gates: Tensor) -> OpenBlocks:
    """The pattern of open gates [H, G]."""
    return OpenBlocks(candidates, tuple("".join("1" if bit else "0" for bit in row) for row in open_gates.tolist()))


def residue_class(candidates: Candidates, n: int) -> Pattern:
    """All pairs of the gate of strides[n]."""
    own = Strided(candidates.strides[n]) & BlockTable(candidates.far(), candidates.block_size)
    earlier: list[Pattern] = [Strided(stride) for stride in candidates.strides[:n]]
    return Without(own, _union(earlier)) if earlier else own


def open_residues(candidates: Candidates, n: int, open_gates: Tensor) -> Pattern | None:
    """The pairs of strides[n] in the heads whose gate [H, G] is open; None where that is no head."""
    heads = open_gates[:, candidates.residue_gate(n)].tolist()
    if not any(heads):
        return None
    own = residue_class(candidates, n)
    return own if all(heads) else PerHead([own if is_open else _nothing(candidates) for is_open in heads])


def plain_pattern(candidates: Candidates, open_gates: Tensor) -> Pattern:
    """The pairs of all open gates [H, G], in patterns that anyone may use: a BlockTable, with residue classes of strides
    beside it where there are any."""
    c = candidates
    tables = open_gates.cpu()[:, c.block_gates(c.length)]  # (H, nb, nb)
    if c.causal:
        tables &= torch.ones(c.blocks, c.blocks, dtype=torch.bool).tril()
    if not c.strides:
        return BlockTable(tables if len(tables) > 1 else tables[0], c.block_size)
    heads = []
    for table, bits in zip(tables, open_gates.tolist(), strict=True):
        pattern: Pattern = BlockTable(table, c.block_size)
        classes = [(residue_class(c, n), bits[c.residue_gate(n)]) for n in range(len(c.strides))]
        shut = [own for own, is_open in classes if not is_open]
        if shut:
            pattern = Without(pattern, _union(shut))
        heads.append(_union([pattern, *(own for own, is_open in classes if is_open)]))
    return heads[0] if len(set(heads)) == 1 else PerHead(heads)


def _nothing(c: Candidates) -> Pattern:
    return BlockTable(np.zeros((c.blocks, c.blocks), dtype=bool), c.block_size)


def _union(parts: list[Pattern]) -> Pattern:
    out = parts[0]
    for part in parts[1:]:
        out = out | part
    return out
