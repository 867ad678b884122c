"""A table that says for each query block which key blocks it sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from longspan.patterns.base import Pattern, causal_part, end_of_block
from longspan.patterns.errors import PatternError, whole_number
from longspan_kernels.block_sparse.block_rules import BlockTableRule
from longspan_kernels.block_sparse.rules import Rule


@dataclass(frozen=True, eq=False, repr=False)
class BlockTable(Pattern):
    """Query block a sees key block b where `table[a, b]`; block of position p is p // block_size.

    Attributes:
        table: [nq, nk] bool, or [H, nq, nk] with one table a head; anything `torch.as_tensor` takes, of bools or of 0
            and 1. Kept as a copy on the CPU. It may be larger than a length needs, never smaller.
        block_size: tokens a block.
    """

    table: Any
    block_size: int

    def validate(self) -> None:
        size = whole_number("BlockTable", "block_size", self.block_size, 1, "a number of tokens a block")
        try:
            table = torch.as_tensor(self.table, device="cpu").detach()  # whatever torch.device is the default
        except (TypeError, ValueError, RuntimeError) as error:
            raise PatternError("BlockTable", "table", f"cannot be made a tensor ({error}); give equal rows of bools") from error
        if table.dim() not in (2, 3) or 0 in table.shape:
            raise PatternError("BlockTable", "table", f"has shape {tuple(table.shape)}; give [nq, nk] or [H, nq, nk]")
        if table.dtype != torch.bool and not bool(((table == 0) | (table == 1)).all()):
            raise PatternError("BlockTable", "table", f"of {table.dtype} holds values other than 0 and 1; give bools")
        self.normalise(table=table.bool().contiguous().clone(), block_size=size)

    def settings(self) -> list[tuple[str, str]]:
        content = hashlib.sha256(np.packbits(self.table.numpy()).tobytes()).hexdigest()[:32]
        shape = "x".join(str(n) for n in self.table.shape)
        return [("table", f"{shape}:{content}"), ("block_size", repr(self.block_size))]

    @property
    def head_count(self) -> int | None:
        return self.table.shape[0] if self.table.dim() == 3 and self.table.shape[0] > 1 else None

    def at_head(self, head: int, heads: int) -> Pattern:
        if self.head_count not in (None, heads):
            raise PatternError(
                "BlockTable",
                "table",
                f"of shape {tuple(self.table.shape)} is made for {self.head_count} heads, "
                f"not {heads}; give [{heads}, nq, nk], or [nq, nk] for all",
            )
        return self

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        self.check_reach(k_len)
        table = self.table if self.table.dim() == 3 else self.table[None]
        return causal_part(BlockTableRule(self.block_size, table.to(device)), causal)

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        table = self.table if self.table.dim() == 2 else self.table[head if len(self.table) > 1 else 0]
        table = table[: -(-stop // self.block_size)]
        at = torch.arange(len(table), device=table.device)[:, None]
        rows = torch.where(table, at, -1).amax(0)  # (nk,) the last row of each column
        block = keys // self.block_size
        last = torch.where(block < len(rows), rows.to(keys.device)[block.clamp(max=len(rows) - 1)], -1)
        return end_of_block(keys, last, self.block_size, stop)

    def check_reach(self, length: int) -> None:
        """Raises PatternError where the table does not cover `length` tokens."""
        needed = -(-length // self.block_size)
        if min(self.table.shape[-2:]) < needed:
            raise PatternError(
                "BlockTable",
                "table",
                f"of shape {tuple(self.table.shape)} is too small for {length} tokens, "
                f"which are {needed} blocks of {self.block_size}; give at least [{needed}, {needed}], or larger blocks",
            )

    def __reduce__(self):
        # numpy bits are an eighth of the bool table, and need no torch storage to travel.
        return _unpacked, (np.packbits(self.table.numpy()), tuple(self.table.shape), self.block_size)


def _unpacked(bits: np.ndarray, shape: tuple[int, ...], block_size: int) -> BlockTable:
    count = int(np.prod(shape))
    return BlockTable(torch.from_numpy(np.unpackbits(bits, count=count).astype(bool).reshape(shape)), block_size)
