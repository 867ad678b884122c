"""Queries that see no key: their outputs are constant, so gradients that arrive at them are dropped, NaN and infinity too.

Only a zero will do: such a query has weights of 0, and 0 * NaN is NaN. Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.registry import lookup
from longspan_kernels.launch.graphs import made_outside_graphs, remembered


def without_keyless_rows(dout: Tensor, lse: Tensor) -> Tensor:
    """dout [B, H, T, D] with zeros at the queries whose lse [B, H, T] is -inf; itself where a CPU finds none."""
    keyless = lse == float("-inf")
    if keyless.device.type == "cpu" and not keyless.any():
        return dout
    return torch.where(keyless[..., None], 0.0, dout)


def same_limits(ours: Tensor | None, theirs: Tensor | None) -> bool:
    """Whether queries and keys share their lengths, or their segments: the same numbers in the same memory."""
    if ours is None or theirs is None:
        return ours is theirs
    return ours.data_ptr() == theirs.data_ptr() and ours.shape == theirs.shape and ours.stride() == theirs.stride()


@remembered(1024)
def every_query_sees_itself(key: str, length: int, heads: int, causal: bool, device: torch.device) -> bool:
    """Whether a pattern keeps all pairs (i, i) of `length` tokens; worked out once for each.

    The answer is looked up before anything is made outside of graphs, which waits for the device.
    """
    return made_outside_graphs(lambda: _diagonal(key, length, heads, causal, device), device)


def _diagonal(key: str, length: int, heads: int, causal: bool, device: torch.device) -> bool:
    place = torch.arange(length, device=device)[:, None]
    for members, rule in lookup(key).head_rules(length, length, heads, causal, device):
        if rule.traits().asks_user:
            return False
        if not all(bool(rule.live(head, place, place).all()) for head in (members if rule.per_head else members[:1])):
            return False
    return True
