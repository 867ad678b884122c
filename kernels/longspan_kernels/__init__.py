"""Block-sparse and linear attention kernels: needs torch alone (triton only when its backend runs)."""

from longspan_kernels.block_sparse.cache import clear_caches
from longspan_kernels.block_sparse.precompile import precompile

__all__ = ["clear_caches", "precompile"]
