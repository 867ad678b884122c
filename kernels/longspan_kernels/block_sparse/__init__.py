"""Block-sparse attention: patterns as rules, rules compiled to layouts, layouts attended by torch or Triton.

To be read in this order:

- a call: `reference.py` (the definition), `args.py` and `op.py` (the op and its gradients), `backends.py` (who computes it);
- its pairs: `rules.py`, `block_rules.py` and `plane.py` (which pairs are live), `grid.py` and `orders.py` (tiles of token
  orders), `compiler.py` (rules to lists of tiles), `layout.py` (those lists), `cache.py` (what is kept of all this);
- on a CPU: `blocked.py` (chunks of a layout), `blocked_passes.py` (both passes), `fused.py` (torch's own kernel);
- by other libraries: `cudnn.py` (dense heads), `flash.py` (FlashAttention-4, where it is asked for);
- in Triton: `triton/call.py`, then `triton/forward.py` with the steps of `triton/common.py` and `triton/masks.py`, then
  `triton/backward.py`.
"""

from longspan_kernels.block_sparse.backends import is_mapped, precompile, tilings_for, what_runs
from longspan_kernels.block_sparse.block_rules import BlockTableRule
from longspan_kernels.block_sparse.cache import clear_layouts, counted_pairs, dense_mask, full_pairs, layout_for
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.flash import flash_refuses
from longspan_kernels.block_sparse.layout import Component, DeviceLayout, Layout, Lists, tile_side
from longspan_kernels.block_sparse.op import attend, attend_by
from longspan_kernels.block_sparse.reference import reference_attention
from longspan_kernels.block_sparse.rules import And, Congruent, Not, Or, Rule

__all__ = [
    "And",
    "BlockTableRule",
    "Component",
    "Congruent",
    "DeviceLayout",
    "Layout",
    "Lists",
    "Not",
    "Or",
    "Rule",
    "Tiling",
    "attend",
    "attend_by",
    "clear_layouts",
    "compile_layout",
    "counted_pairs",
    "dense_mask",
    "flash_refuses",
    "full_pairs",
    "is_mapped",
    "layout_for",
    "precompile",
    "reference_attention",
    "tile_side",
    "tilings_for",
    "what_runs",
]
