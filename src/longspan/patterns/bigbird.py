"""BigBird: a window, random blocks and global blocks, all of them whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.patterns.base import Pattern, causal_part, end_of_block
from longspan.patterns.draws import MOST_ROWS, block_rows, distinct_draws, last_rows
from longspan.patterns.errors import PatternError, whole_number
from longspan.patterns.global_tokens import global_rule
from longspan.patterns.random_blocks import block_lists
from longspan_kernels.block_sparse.block_rules import BlockBand
from longspan_kernels.block_sparse.rules import Or, Rule


@dataclass(frozen=True, eq=False, repr=False)
class BigBird(Pattern):
    """BigBird's block attention (arXiv:2007.14062), each part made of whole blocks.

    Both ways, half of the globals are at the start and half at the end (an odd one at the start); causal, all are at
    the start. Randoms are distinct and lie outside the row's window and the globals; causal ones are among visible
    blocks and do not depend on the length. Where fewer blocks remain, all of them. The last block may be ragged.

    Attributes:
        block_size: tokens a block.
        window_blocks: blocks of the window, odd, centred on the row's own; causal attention keeps its past half.
        random_blocks: random key blocks for each head and row.
        global_blocks: blocks that see and are seen by all.
        seed: any whole number from 0.
    """

    block_size: int = 64
    window_blocks: int = 3
    random_blocks: int = 3
    global_blocks: int = 2
    seed: int = 0

    def validate(self) -> None:
        own = "BigBird"
        window = whole_number(own, "window_blocks", self.window_blocks, 1, "an odd number of blocks")
        if window % 2 == 0:
            raise PatternError(own, "window_blocks", f"= {window} is even; give an odd number, {window - 1} or {window + 1}")
        self.normalise(
            block_size=whole_number(own, "block_size", self.block_size, 1, "a number of tokens a block"),
            window_blocks=window,
            random_blocks=whole_number(own, "random_blocks", self.random_blocks, 0, "a number of blocks"),
            global_blocks=whole_number(own, "global_blocks", self.global_blocks, 0, "a number of blocks"),
            seed=whole_number(own, "seed", self.seed, 0, "a seed", most=None),
        )

    def length_step(self, causal: bool) -> int:
        return 0 if causal or (self.global_blocks < 2 and not self.random_blocks) else self.block_size

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        size, side, blocks = self.block_size, self.window_blocks // 2, -(-k_len // self.block_size)
        at_end = 0 if causal else self.global_blocks // 2
        at_start = self.global_blocks - at_end
        parts = [causal_part(BlockBand(size, 0 if causal else -side, side), causal)]
        if self.global_blocks:
            last = max(0, blocks - at_end) * size
            parts.append(global_rule([(0, at_start * size), (last, last + at_end * size)], k_len, causal))
        if self.random_blocks:
            rows = block_rows(q_len, k_len, size, device)
            lists = self._randoms(rows, at_start, blocks - at_end, torch.tensor(heads, device=device), causal)
            parts.append(causal_part(block_lists(size, lists, heads, rows), causal))
        return Or(*parts)

    def last_query(self, keys: Tensor, stop: int, head: int = 0) -> Tensor:
        size, count, block = self.block_size, -(-stop // self.block_size), keys // self.block_size
        last = block + self.window_blocks // 2
        if self.random_blocks and count <= MOST_ROWS:
            drawn = self._randoms(torch.arange(count), self.global_blocks, count, torch.tensor([head]), True)[0]
            last = torch.maximum(last, last_rows(drawn, count).to(keys.device)[block])
        elif self.random_blocks:  # any block may be drawn again
            last = torch.full_like(last, count)
        last = torch.where(block < self.global_blocks, count, last)
        return end_of_block(keys, last, size, stop)

    def kept_blocks(self, counts: Tensor, blocks: int, heads: int) -> Tensor:
        at_end, side = self.global_blocks // 2, self.window_blocks // 2
        at_start = self.global_blocks - at_end
        row = torch.arange(blocks, device=counts.device)
        high = (counts - at_end)[:, None, None]  # (B, 1, 1)
        seen = (row < at_start) | (row >= high)  # (B, 1, n) global blocks
        kept = ((row[:, None] - row).abs() <= side) | seen[..., None, :] | seen[..., None]  # (B, 1, n, n)
        if self.random_blocks:
            drawn = self._randoms(row, at_start, high, torch.arange(heads, device=row.device), False, blocks)  # (B, H, n, r)
            kept = kept | (drawn[..., None] == row).any(-2)
        there = row < counts[:, None, None]
        return kept & there[..., None] & there[..., None, :]

    def _randoms(
        self, rows: Tensor, low: int, high: int | Tensor, heads: Tensor, causal: bool, most: int | None = None
    ) -> Tensor:
        """[len(heads), R, n] key blocks drawn from [low, high) without each row's window, -1 for none; [B, len(heads), R, n]
        where `high` is [B, 1, 1]. `most`: see `distinct_draws`."""
        side = self.window_blocks // 2
        stop = (rows + 1 if causal else torch.zeros_like(rows) + high).clamp(min=low)
        window_start = torch.minimum((rows - side).clamp(min=low), stop)
        window_stop = torch.minimum((rows + side + 1).clamp(min=low), stop)
        before = window_start - low
        available = before + (stop - window_stop)
        # A global row sees all already.
        available = torch.where((rows >= 0) & (rows < low) | (rows >= high), 0, available)
        drawn = distinct_draws(self.seed, heads, rows, available, self.random_blocks, most)
        skip = before[..., None]
        block = torch.where(drawn < skip, low + drawn, window_stop[..., None] + drawn - skip)
        return torch.where(drawn < 0, -1, block)
