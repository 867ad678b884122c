"""Starts Triton kernels: a cached launcher, CUDA graphs, autocast, and a check that Triton runs here."""

from longspan_kernels.launch.autocast import autocast_dtype, cast_as_products

__all__ = ["autocast_dtype", "cast_as_products"]
