"""FLOPs of the ops for torch.utils.flop_counter: those of visited pairs, not live ones, on the reference tiling.

A visited pair costs 4 * D forward (its score and its share of the output, a multiply-add each D) and 10 * D backward (score
again, dp, dq, dk, dv). Pairs are counted as costs are, so that a count is the same on every device and backend.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.cache import counted_pairs

FORWARD, BACKWARD = 4, 10  # times D, a pair
BIAS_BLOCK = 6  # its place among the arguments after the backend


def forward_flops(q_shape, k_shape, v_shape, key, causal, scale, dropout_p, backend, *rest, out_shape=None, **kwargs) -> int:
    pairs = counted_pairs(key, q_shape[2], k_shape[2], q_shape[1], causal, rest[BIAS_BLOCK] if rest else 0)
    return FORWARD * q_shape[3] * q_shape[0] * pairs


def backward_flops(
    dout_shape, dlse_shape, q_shape, k_shape, v_shape, o_shape, lse_shape, key, causal, scale, dropout_p, backend, *rest,
    out_shape=None, **kwargs,
) -> int:  # fmt: skip
    pairs = counted_pairs(key, q_shape[2], k_shape[2], q_shape[1], causal, rest[BIAS_BLOCK] if rest else 0)
    return BACKWARD * q_shape[3] * q_shape[0] * pairs


def choice_flops(
    q_shape, means_shape, lengths_shape, picks, block_size, causal, backend, *rest, out_shape=None, **kwargs
) -> int:
    """A dot product for each query and block that it may pick; lengths are not known here."""
    (batch, heads, length, width), blocks = q_shape, means_shape[2]
    whole, rest_of_it = divmod(length, block_size)
    before = block_size * (whole * (whole - 1) // 2) + rest_of_it * whole  # blocks before a query's own, summed over queries
    return 2 * width * batch * heads * (before if causal else length * (blocks - 1))


def register() -> None:
    """Makes FlopCounterMode count the ops; called once, when they are defined."""
    register_flop_formula(torch.ops.longspan.block_sparse_forward)(forward_flops)
    register_flop_formula(torch.ops.longspan.block_sparse_backward)(backward_flops)
