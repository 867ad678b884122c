"""Keeps what is derived from a tensor as long as the tensor lives and is not changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Made = TypeVar("Made")


class KeptByTensor:
    """Layers of a model derive the same things from the same lengths or masks: the first makes them, the others find them.

    Nothing is kept while a graph is traced, nor of tensors of `torch.inference_mode`, which count no changes.
    """

    def __init__(self) -> None:
        self._kept = WeakTensorKeyDictionary()

    def get(self, tensor: Tensor, name: Hashable, make: Callable[[], Made]) -> Made:
        """What was made of a tensor under a name, or what `make()` returns now."""
        if torch.compiler.is_compiling() or tensor.is_inference():
            return make()
        kept = self._kept.setdefault(tensor, {})
        version, made = kept.get(name, (None, None))
        if version != tensor._version:
            with torch.inference_mode(False), torch.no_grad():  # a later call may differentiate by what it finds
                made = make()
            kept[name] = tensor._version, made
        return made

    def of(self, tensor: Tensor) -> dict:
        """All that is kept of a tensor: name -> (the tensor's version, what was made)."""
        return dict(self._kept.get(tensor, {}))
