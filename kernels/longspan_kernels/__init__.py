"""Block-sparse and linear attention kernels: needs torch alone (triton only when its backend runs)."""

from longspan_kernels.block_sparse.backends import precompile
from longspan_kernels.errors import BackendError, KernelError
from longspan_kernels.launch.graphs import clear_caches

__all__ = ["BackendError", "KernelError", "clear_caches", "precompile"]
