"""Lists the queries of each key block: by counting or sorting the picks on the device, without waiting for it.

Legend: B batch, P heads that pick for themselves, T tokens, n picks a query, nb key blocks. Entry t * n + s of a head is pick s
of its token t; list (b * P + p) * nb + c holds the entries of a head that picked block c, in rising order of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.launch.ops import op

MOST_ENTRIES = 1 << 31  # B * P * T * n: entries are numbered by 32 bits


@op("queries_of_blocks")
def queries_of_blocks(picks: Tensor, lengths: Tensor | None, blocks: int, backend: str = "torch") -> tuple[Tensor, Tensor]:
    """picks [B, P, T, n] int, -1 for none -> order [B * P * T * n] int32 and start [B * P * nb + 1] int32.

    `order[start[i] : start[i + 1]]` are the entries of list i, numbered through all heads: (b * P + p) * T * n + t * n + s.
    Picks of blocks that do not exist, and of queries at or past `lengths` [B], are in no list; they come last. Plain torch
    sorts; Triton has kernels that count, and kernels around torch's sort where there are many.
    """
    B, P, T, _ = picks.shape
    lists = B * P * blocks
    # Radix sort passes over a key byte by byte.
    kind = torch.int16 if lists < (1 << 15) - 1 else torch.int32
    if backend == "triton" and picks.numel():
        from longspan_kernels.selected.triton.list_kernels import triton_queries_of_blocks

        return triton_queries_of_blocks(picks, lengths, blocks, kind)
    head = (torch.arange(B * P, device=picks.device) * blocks).view(B, P, 1, 1)
    none = (picks < 0) | (picks >= blocks)
    if lengths is not None:
        none = none | (torch.arange(T, device=picks.device) >= lengths[:, None])[:, None, :, None]
    of = torch.where(none, lists, picks + head).to(kind).flatten()
    of, order = torch.sort(of, stable=True)
    start = torch.searchsorted(of, torch.arange(lists + 1, device=picks.device, dtype=kind), out_int32=True)
    return order.int(), start


@queries_of_blocks.register_fake
def _(picks, lengths, blocks, backend="torch"):
    B, P, T, n = picks.shape
    return picks.new_empty(B * P * T * n, dtype=torch.int32), picks.new_empty(B * P * blocks + 1, dtype=torch.int32)
