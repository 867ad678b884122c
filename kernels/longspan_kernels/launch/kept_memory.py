"""Large results on a CPU take memory that earlier ones have given back.

The C library returns what is larger than 32 MiB to the system when it is freed, and the next result of that size is new memory:
its first write faults once every 4 kB. For 256 MiB that takes 0.09 s where writing alone takes 0.01 s; linear attention of
65,536 tokens spent a third of its time so.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from longspan_kernels.launch.graphs import cleared_by

LEAST = 1 << 25  # bytes of a result; below, the C library keeps the memory itself
MOST = 5 << 28  # bytes kept in all: output and gradients of 65,536 tokens of 16 heads of 64 float32 numbers, and a quarter


class KeptMemory:
    """Memory that was given back, oldest first; its owner is whoever took it last, until nothing refers to that tensor."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # giving back can happen wherever Python frees something, here too
        self._free: list[Tensor] = []

    def empty(self, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous tensor of `shape`, not filled, on the device of `like` and in its dtype unless another is given."""
        dtype = like.dtype if dtype is None else dtype
        size = math.prod(shape) * dtype.itemsize
        if like.device.type != "cpu" or size < LEAST:
            return torch.empty(tuple(shape), dtype=dtype, device=like.device)
        memory = self._take(size)
        # torch keeps the array for as long as a tensor shares this memory
        array = (ctypes.c_byte * size).from_address(memory.data_ptr())
        weakref.finalize(array, self._give_back, memory).atexit = False
        return torch.frombuffer(array, dtype=dtype).view(tuple(shape))

    def kept(self) -> int:
        """Bytes that wait for the next result."""
        with self._lock:
            return sum(memory.numel() for memory in self._free)

    def clear(self) -> None:
        """Returns all that waits to the system."""
        with self._lock:
            self._free.clear()

    def renew_lock(self) -> None:
        """In a forked process, where whoever held the lock is no more."""
        self._lock = threading.RLock()

    def _take(self, size: int) -> Tensor:
        with self._lock:
            for memory in reversed(self._free):
                if size <= memory.numel() <= size + size // 4:
                    self._free = [other for other in self._free if other is not memory]
                    return memory
        return torch.empty(size, dtype=torch.uint8)

    def _give_back(self, memory: Tensor) -> None:
        with self._lock:
            kept = [*self._free, memory]
            while kept and sum(other.numel() for other in kept) > MOST:
                kept.pop(0)
            self._free = kept


results = KeptMemory()
cleared_by(results.clear)
os.register_at_fork(after_in_child=results.renew_lock)
