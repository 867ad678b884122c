"""Gradients of the plain-torch backend, summed over chunks in a fixed order.

Legend: as in blocked.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.blocked import Chunk


class Gradient:
    """The sum over chunks of one gradient [B, H, T, D]. The first chunk of a head overwrites, so nothing is zeroed."""

    def __init__(self, x: Tensor, queries: bool):
        self.sum = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        self.queries = queries
        self.begun = torch.zeros(x.shape[:2], dtype=torch.bool)  # on the CPU: what is asked of it decides what runs

    def add(self, chunk: Chunk, values: Tensor, H: int) -> None:
        """Adds a chunk's part [G, blocks, block, D or more], in its order; H is the number of query heads."""
        values = values[..., : self.sum.shape[3]]
        repeat = H // self.sum.shape[1]
        heads = chunk.heads if repeat == 1 else sorted({head // repeat for head in chunk.head_numbers})
        begun = self.begun[chunk.batch]
        fresh = ~begun[:, heads]
        if repeat == 1 and isinstance(heads, slice) and bool(fresh.all()) and self._written(chunk, values, heads):
            begun[:, heads] = True
            return
        if bool(fresh.any()):
            self._clear(self.sum[chunk.batch], begun)
            begun[:] = True
        add_into(self.sum, chunk, values, self.queries, H)

    def _written(self, chunk: Chunk, values: Tensor, heads: slice) -> bool:
        """Writes the part and returns True where it holds every token row once; else returns False."""
        length, D = self.sum.shape[2:]
        part, rows = chunk.restored(values, self.queries, length)
        if rows is not None and (len(rows) != length or not bool((torch.bincount(rows, minlength=length) == 1).all())):
            return False
        own = self.sum[chunk.batch, heads]
        part = part.view(*own.shape[:2], -1, D)
        if rows is None:
            own.copy_(part)
        else:
            own.index_copy_(2, rows, part)
        return True

    def total(self, dtype: torch.dtype) -> Tensor:
        """The gradient."""
        self._clear(self.sum, self.begun)
        return self.sum.to(dtype)

    @staticmethod
    def _clear(sums: Tensor, begun: Tensor) -> None:
        """Zeros where no chunk has written."""
        if not bool(begun.all()):
            sums[(~begun).to(sums.device)] = 0.0


def add_into(target: Tensor, chunk: Chunk, values: Tensor, queries: bool, H: int) -> None:
    """Adds a chunk's gradient to the token rows and heads it belongs to."""
    length, D = target.shape[2], target.shape[3]
    part, rows = chunk.restored(values, queries, length)
    batch = target[chunk.batch]
    part = part.view(batch.shape[0], len(chunk.head_numbers), -1, D)
    repeat = H // target.shape[1]
    if repeat > 1:
        # Query heads of one key/value head add in the order of their number.
        for place, head in enumerate(chunk.head_numbers):
            own = batch[:, head // repeat]
            own += part[:, place] if rows is None else 0
            if rows is not None:
                own.index_add_(1, rows, part[:, place])
        return
    if isinstance(chunk.heads, slice):
        own = batch[:, chunk.heads]
        if rows is None:
            own += part
        else:
            own.index_add_(2, rows, part)
        return
    for place, head in enumerate(chunk.heads):
        own = batch[:, head]
        if rows is None:
            own += part[:, place]
        else:
            own.index_add_(1, rows, part[:, place])
