"""Block-sparse and linear attention kernels: needs torch alone (triton only when its backend runs)."""
