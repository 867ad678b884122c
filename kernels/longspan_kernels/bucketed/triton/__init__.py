"""Bucketed attention's Triton kernels; Triton is imported in here: import lazily."""
