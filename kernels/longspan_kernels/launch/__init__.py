"""Starts Triton kernels and torch ops: a cached launcher, CUDA graphs, kept memory, ops and autocast."""

from longspan_kernels.launch.ops import autocast_dtype, cast_as_products

__all__ = ["autocast_dtype", "cast_as_products"]
