"""FlexAttention's block masks as patterns.

Legend: H heads, n query or key blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from longspan.patterns import BlockTable, Full, Pattern, PatternError, Predicate


def from_block_mask(block_mask: BlockMask) -> Pattern:
    """The pairs that FlexAttention computes with a block mask: all of its full blocks, and of its partial blocks those for
    which its `mask_mod` is true.

    A causal mask stays one: call `sparse_attention` with `causal=False`. `mask_mod` is evaluated at every pair once a length,
    so a pattern that knows its structure, such as `Local(512)`, is compiled faster and may run faster too.

    Args:
        block_mask: made for one batch element (B=1) and as many queries as keys; for one head or for all.

    Raises:
        PatternError: it differs by batch element, or has other lengths of queries and keys.
    """
    batch, heads = block_mask.kv_num_blocks.shape[:2]
    q_length, k_length = block_mask.seq_lengths
    if batch != 1:
        raise PatternError(
            "from_block_mask",
            "block_mask",
            f"is made for B={batch}; make it with B=None, or pass lengths and segments to sparse_attention",
        )
    if q_length != k_length:
        raise PatternError(
            "from_block_mask",
            "block_mask",
            f"has {q_length} queries and {k_length} keys; make it for as many "
            "of both: sparse_attention places queries at the end of the keys by itself",
        )
    size = math.gcd(*block_mask.BLOCK_SIZE)
    partial = _table(block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.BLOCK_SIZE, size)
    masked: Pattern = BlockTable(partial, size)
    if block_mask.mask_mod is not noop_mask:
        masked = masked & Predicate(block_mask.mask_mod, per_head=heads > 1)
    if block_mask.full_kv_num_blocks is None or block_mask.full_kv_indices is None:
        return Full() if block_mask.mask_mod is noop_mask and bool(partial.all()) else masked
    full = _table(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, block_mask.BLOCK_SIZE, size)
    return BlockTable(full, size) | masked if bool(full.any()) else masked


def _table(counts: Tensor, indices: Tensor, block_size: tuple[int, int], size: int) -> Tensor:
    """Lists of key blocks [1, H, n], [1, H, n, n] as a bool table [H, n, n] of blocks of `size` by `size`."""
    counts, indices = counts[0].cpu(), indices[0].cpu().long()  # (H, nq), (H, nq, nk)
    listed = torch.arange(indices.shape[-1]) < counts[..., None]
    table = torch.zeros(*indices.shape[:2], indices.shape[-1], dtype=torch.bool)
    table.scatter_reduce_(-1, indices, listed, "amax")
    table = table.repeat_interleave(block_size[0] // size, 1).repeat_interleave(block_size[1] // size, 2)
    return table if table.shape[0] > 1 else table[0]
