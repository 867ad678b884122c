"""Triton kernels of linear attention; each file that defines kernels imports Triton, so import them lazily."""
