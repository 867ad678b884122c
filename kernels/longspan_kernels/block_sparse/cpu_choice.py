"""Which of two ways a CPU attends by: the blocks of a pattern, or all pairs with its mask, by a model of their time.

Both end in torch's fused kernel. All pairs cost no lists, no gathering and no merging, so short and dense calls go that way;
long sparse ones visit their blocks. Nothing is timed at run time, so equal calls always run alike.

Legend: B batch, H heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan_kernels.block_sparse.blocked import row_batches
from longspan_kernels.block_sparse.cache import block_size_of, blocked_tiling, layout_for
from longspan_kernels.block_sparse.fused import says_all
from longspan_kernels.block_sparse.layout import Layout
from longspan_kernels.block_sparse.registry import state_of
from longspan_kernels.launch.graphs import remembered

SHORT = 128  # tokens up to which all pairs are always quicker: no layout is made to find that out
MOST_MASK = 1 << 24  # pairs of a mask that is worth keeping (64 MiB)

# Microseconds, estimated from few calls on two cores of an AMD EPYC: a call, 1,000 visited pairs, 1,000 visited pairs times D,
# 1,000 tokens times D that are put in order.
DENSE = {"forward": (60.0, 0.62, 0.0163, 0.0), "backward": (90.0, 0.71, 0.049, 0.0)}
BLOCKED = {"forward": (140.0, 0.62, 0.0163, 1.6), "backward": (260.0, 0.71, 0.049, 7.0)}


@dataclass(frozen=True)
class Shape:
    """What the choice depends on."""

    batch: int
    heads: int
    q_len: int
    k_len: int
    head_dim: int


def chosen(key: str, shape: Shape, causal: bool, which: str) -> str:
    """ "dense" or "blocked" for one pass ("forward" or "backward") of a call."""
    return _chosen(key, state_of(key), shape, causal, which)


@remembered(4096)
def _chosen(key: str, state: tuple, shape: Shape, causal: bool, which: str) -> str:
    if says_all(key, shape.q_len, shape.k_len, shape.heads, causal) or max(shape.q_len, shape.k_len) <= SHORT:
        return "dense"
    if shape.heads * shape.q_len * shape.k_len > MOST_MASK:
        return "blocked"
    dense = seconds(DENSE[which], dense_features(key, shape, causal))
    return "dense" if dense <= seconds(BLOCKED[which], blocked_features(key, shape, causal)) else "blocked"


def seconds(constants: tuple[float, ...], features: tuple[float, ...]) -> float:
    """The model: a sum of products."""
    return 1e-6 * sum(a * b for a, b in zip(constants, features, strict=True))


def visited_by(backend: str, key: str, shape: Shape, causal: bool) -> int:
    """Pairs of one sequence that a CPU backend visits, over all heads."""
    if backend == "blocked":
        return cpu_layout(key, shape, causal).visited_pairs
    pairs = shape.q_len * shape.k_len
    # The kernel's causal flag leaves out what lies above the diagonal, up to its blocks.
    if causal and shape.q_len == shape.k_len:
        pairs = shape.q_len * (shape.q_len + 1) // 2
    return shape.heads * pairs


def dense_features(key: str, shape: Shape, causal: bool) -> tuple[float, ...]:
    """(calls, thousands of visited pairs, the same times D, thousands of ordered elements)."""
    pairs = shape.batch * visited_by("dense", key, shape, causal) / 1000
    return 1.0, pairs, pairs * shape.head_dim, 0.0


def blocked_features(key: str, shape: Shape, causal: bool) -> tuple[float, ...]:
    """As `dense_features`."""
    layout = cpu_layout(key, shape, causal)
    calls, places = 0, 0
    for component in layout.components:
        groups = component.group[component.group >= 0].tolist()
        calls += sum(len(row_batches(component.rows, u)) for u in set(groups))
        places += len(groups) * (component.q_blocks * component.block_q + component.k_blocks * component.block_k)
    pairs = shape.batch * layout.visited_pairs / 1000
    return float(calls), pairs, pairs * shape.head_dim, shape.batch * places * shape.head_dim / 1000


def cpu_layout(key: str, shape: Shape, causal: bool) -> Layout:
    """The blocked backend's layout of a call without a block bias."""
    tiling = blocked_tiling(block_size_of(key, shape.heads, causal))
    return layout_for(key, shape.q_len, shape.k_len, shape.heads, causal, tiling, torch.device("cpu"))
