"""Block-sparse attention: patterns as rules, rules compiled to layouts, layouts attended by torch or Triton."""

from .choose import choose_blocks, choose_scored_blocks
from .device_layout import DeviceLayout, DeviceLayoutError
from .device_op import attend_by
from .layout import Component, Layout, Lists
from .op import BackendError, attend
from .planner import Tiling, compile_layout
from .reference import reference_attention
from .resolve import clear_layouts, dense_mask, layout_for

__all__ = [
    "BackendError",
    "Component",
    "DeviceLayout",
    "DeviceLayoutError",
    "Layout",
    "Lists",
    "Tiling",
    "attend",
    "attend_by",
    "choose_blocks",
    "choose_scored_blocks",
    "clear_layouts",
    "compile_layout",
    "dense_mask",
    "layout_for",
    "reference_attention",
]  # fmt: skip
