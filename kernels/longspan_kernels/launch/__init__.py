"""Starts Triton kernels and torch ops: a cached launcher, CUDA graphs, kept memory, ops and autocast."""

from longspan_kernels.launch.ops import autocast_dtype, cast_as_products, without_autocast

__all__ = ["autocast_dtype", "cast_as_products", "without_autocast"]
