"""Lays tensors out for the kernels of selected attention: aligned rows, and keys and values with the same strides."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.launch.launcher import readable


def laid_out(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors as kernels take them: rows that start at whole multiples of 16 bytes, keys and values with equal strides."""
    q, k, v = (by_rows(x) for x in (q, k, v))
    if k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    return q, k, v


def unit(width: int) -> int:
    """Elements of a unit of offsets, as kernels know it."""
    return 16 if width % 16 == 0 else 8 if width % 8 == 0 else 1


def by_rows(x: Tensor) -> Tensor:
    """x itself where every row starts at a whole unit, else a copy."""
    x = readable(x)
    return x.contiguous() if any(stride % unit(x.shape[3]) for stride in x.stride()[:3]) else x


def in_units(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, head and token, in units."""
    b, h, t, _ = x.stride()
    one = unit(x.shape[3])
    return b // one, h // one, t // one


def like_queries(x: Tensor, q: Tensor) -> Tensor:
    """x with the strides of q, copied where it has others."""
    if x.stride() == q.stride() and x.data_ptr() % 16 == 0:
        return x
    return torch.empty_strided(q.shape, q.stride(), dtype=x.dtype, device=x.device).copy_(x)
