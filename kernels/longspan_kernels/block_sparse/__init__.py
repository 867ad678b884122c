"""Block-sparse attention: patterns as rules, rules compiled to layouts, layouts attended by torch or Triton."""

from longspan_kernels.block_sparse.backends import precompile, tilings_for, what_runs
from longspan_kernels.block_sparse.block_rules import BlockTableRule
from longspan_kernels.block_sparse.cache import clear_layouts, counted_pairs, dense_mask, full_pairs, layout_for
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
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
    "full_pairs",
    "layout_for",
    "precompile",
    "reference_attention",
    "tile_side",
    "tilings_for",
    "what_runs",
]
