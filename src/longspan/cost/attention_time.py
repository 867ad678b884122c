"""Measures the part of a training step that attention takes, by marks around each attention module, forward and backward.

Marks are CUDA events on a GPU, so that a step is not held up by them, and times elsewhere. Attention is what
``sparse_attention`` and its kin do: projections before and after it are not in it. A step with marks is a step like any
other, but counts for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class AttentionClock:
    """Adds up the time that modules take from `start` to `stop`, with their backward passes.

    Args:
        device: whose time it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._handles: list[RemovableHandle] = []
        self._begun: dict[tuple[int, str], Any] = {}
        self._spans: list[tuple[Any, Any]] = []

    @property
    def running(self) -> bool:
        return bool(self._handles)

    def start(self, modules: Iterable[nn.Module]) -> None:
        """Marks the passes of `modules` from now on; none may be within another."""
        self._spans, self._begun = [], {}
        for module in modules:
            self._handles += [
                module.register_forward_pre_hook(lambda m, _: self._begin(m, "forward")),
                module.register_forward_hook(lambda m, *_: self._end(m, "forward")),
                module.register_full_backward_pre_hook(lambda m, _: self._begin(m, "backward")),
                module.register_full_backward_hook(lambda m, *_: self._end(m, "backward")),
            ]

    def stop(self) -> float:
        """Seconds so far, once the device has finished. No more marks are made."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.device.type == "cuda" and self._spans:
            torch.cuda.synchronize(self.device)
            return sum(begun.elapsed_time(ended) for begun, ended in self._spans) / 1000
        return sum(ended - begun for begun, ended in self._spans)

    def _begin(self, module: nn.Module, which: str) -> None:
        self._begun[id(module), which] = self._mark()

    def _end(self, module: nn.Module, which: str) -> None:
        begun = self._begun.pop((id(module), which), None)
        if begun is not None:
            self._spans.append((begun, self._mark()))

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def marked_modules(pl_module: Any) -> list[nn.Module]:
    """The attention of each layer that can be marked: none where the model does not tell, or is compiled, since a hook
    would have it compiled anew."""
    model = getattr(pl_module, "model", None)
    backbone: Any = getattr(model, "backbone", model)
    if not hasattr(backbone, "attention_modules") or getattr(getattr(backbone, "settings", None), "compile", False):
        return []
    return list(backbone.attention_modules())
