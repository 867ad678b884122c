"""Keeps what outlives a call out of a CUDA graph's memory pool, and clears all of it by one `clear_caches()`.

While torch.compile warms up a CUDA graph, all that the running thread allocates comes from the graph's own pool, where nothing
may stay but the graph's outputs. Layouts and work lists stay, so another thread makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from threading import local
from typing import TypeVar, cast

import torch

from longspan_kernels.errors import BackendError

Made = TypeVar("Made")
Function = TypeVar("Function", bound=Callable)
_clears: list[Callable[[], None]] = []
_thread: ThreadPoolExecutor | None = None
_running = local()


def cleared_by(clear: Function) -> Function:
    """Registers a function that clears a module's cache, for `clear_caches` to call."""
    _clears.append(clear)
    return clear


def remembered(most: int) -> Callable[[Function], Function]:
    """Caches a function's results for its `most` latest arguments, until `clear_caches`."""

    def keep(function: Function) -> Function:
        kept = lru_cache(maxsize=most)(function)
        cleared_by(kept.cache_clear)

        @wraps(function)
        def call(*arguments, **named):
            # torch.compile warns of each cache that it meets, and looks through it.
            return function(*arguments, **named) if torch.compiler.is_compiling() else kept(*arguments, **named)

        vars(call).update(cache_clear=kept.cache_clear, cache_info=kept.cache_info)
        return cast(Function, call)

    return keep


def clear_caches() -> None:
    """Clears every cache: layouts, dense masks, answers about patterns, compiled kernels. What recorded CUDA graphs read stays.
    Patterns compile again when they are used next."""
    for clear in _clears:
        clear()


def made_outside_graphs(make: Callable[[], Made], device: torch.device, stays: bool = True) -> Made:
    """What `make()` returns, made in ordinary memory and ready for the caller's stream.

    On a CPU there are no graphs, and `make` is simply called; so it is where what it makes does not stay.

    Raises:
        BackendError: a graph is being recorded; nothing can be made ready for it any more.
    """
    if device.type != "cuda" or not stays or getattr(_running, "here", False):  # this thread would wait for itself
        return make()
    if capturing(device):
        raise BackendError(
            "a CUDA graph is being recorded, and this call of sparse attention was not prepared: run the same call (shapes, "
            "strides, pattern) once before recording"
        )
    global _thread
    if _thread is None:
        _thread = ThreadPoolExecutor(1, thread_name_prefix="longspan-layouts")
    stream = torch.cuda.current_stream(device)

    def work() -> Made:
        _running.here = True
        # What exists on the caller's stream is read here, on this thread's own: each waits for the other.
        with torch.cuda.device(device):
            here = torch.cuda.current_stream(device)
            here.wait_stream(stream)
            made = make()
            here.synchronize()
        return made

    return _thread.submit(work).result()


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded, whose replays will read what this call reads."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
