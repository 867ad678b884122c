"""Autocast's dtype for the products of a tensor: custom ops choose it themselves, as autocast does not know them."""

from __future__ import annotations

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives products with x; None where it is off, and for float64, which autocast leaves alone."""
    kind = x.device.type
    # torch.amp.is_autocast_available would tell of "meta" too, but torch 2.11 cannot trace it.
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast_as_products(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype that autocast gives products with the first; as they are where it gives none."""
    dtype = autocast_dtype(tensors[0])
    return list(tensors) if dtype is None else [x.to(dtype) for x in tensors]
