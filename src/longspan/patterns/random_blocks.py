"""Random whole key blocks for each query block."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern, causal_part, end_of_block
from longspan.patterns.draws import MOST_ROWS, block_rows, distinct_draws, last_rows, per_head_lists
from longspan.patterns.errors import whole_number
from longspan_kernels.block_sparse.block_rules import BlockLists
from longspan_kernels.block_sparse.rules import Rule


@dataclass(frozen=True, eq=False, repr=False)
class Random(Pattern):
    """Each query block sees `blocks` distinct whole key blocks, drawn a head and row (BigBird, arXiv:2007.14062).

    Causal draws are among the blocks up to the query's own, and do not depend on the length. Where fewer blocks remain,
    all of them. A draw depends on (seed, head, row) alone: it is the same on every device, rank and day.

    Attributes:
        blocks: key blocks a query block.
        block_size: tokens a block; the last block may be ragged.
        seed: any whole number from 0.
    """

    blocks: int
    block_size: int
    seed: int = 0

    def validate(self) -> None:
        self.normalise(
            blocks=whole_number("Random", "blocks", self.blocks, 1, "a number of key blocks"),
            block_size=whole_number("Random", "block_size", self.block_size, 1, "a number of tokens a block"),
            seed=whole_number("Random", "seed", self.seed, 0, "a seed", most=None),
        )

    def length_step(self, causal: bool) -> int:
        return 0 if causal else self.block_size

    def kept_blocks(self, counts: torch.Tensor, blocks: int, heads: int) -> torch.Tensor:
        row = torch.arange(blocks, device=counts.device)
        count = counts[:, None, None]  # (B, 1, 1)
        available = torch.zeros_like(row) + count
        drawn = distinct_draws(self.seed, torch.arange(heads, device=row.device), row, available, self.blocks, blocks)
        return (drawn[..., None] == row).any(-2) & (row < count)[..., None]

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        count = -(-stop // self.block_size)
        if count > MOST_ROWS:  # any block may be drawn again
            return torch.full_like(keys, stop - 1)
        rows = torch.arange(count)
        drawn = distinct_draws(self.seed, torch.tensor([head]), rows, rows + 1, self.blocks)[0]
        last = last_rows(drawn, count).to(keys.device)[keys // self.block_size]
        return end_of_block(keys, last, self.block_size, stop)

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        rows = block_rows(q_len, k_len, self.block_size, device)
        available = rows + 1 if causal else torch.full_like(rows, -(-k_len // self.block_size))
        lists = distinct_draws(self.seed, torch.tensor(heads, device=device), rows, available, self.blocks)
        return causal_part(block_lists(self.block_size, lists, heads, rows), causal)


def block_lists(block_size: int, lists: torch.Tensor, heads: tuple[int, ...], rows: torch.Tensor) -> BlockLists:
    """Lists [len(heads), R, n] of key blocks as a rule of these heads."""
    first_row = int(rows[0]) if len(rows) else 0
    if len(heads) == 1:  # the same lists for any head number, as the rule serves this head alone
        return BlockLists(block_size, lists, first_row)
    return BlockLists(block_size, per_head_lists(heads, lists), first_row)
