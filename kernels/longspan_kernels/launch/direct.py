"""Launches a compiled kernel without Triton's Python.

For every launch Triton builds a dict for hooks that nobody set, two closures for scratch memory that the kernel does not take,
and asks the driver about every pointer. What it hands to its launcher in C is the same each time but for the stream and the
kernel's arguments, so it is recorded once and handed over directly after that.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from torch import Tensor

KNOWN = ("3.6.", "3.7.", "3.8.", "3.9.")  # versions of Triton whose sources were read


def direct_launch(compiled: Any, grid: tuple[int, int, int], tensors: tuple, tail: list) -> Callable[..., None] | None:
    """A function that launches `compiled` on tensors, followed by the arguments `tail`, on the device that is current now.

    It serves launches after the first, which loaded the kernel. A launch while hooks are set, a profiler's, goes through
    Triton, which calls them.

    Returns:
        None where this version of Triton, or what the kernel needs, is not known to be safe.
    """
    import triton
    from triton import knobs
    from triton.runtime import driver

    if not triton.__version__.startswith(KNOWN):
        return None
    recorded = _recorded(compiled, grid, (*tensors, *tail))
    if recorded is None:
        return None
    launch, fixed, packed = recorded
    x, y, z = grid
    runtime, device, stream_of = knobs.runtime, driver.active.get_current_device(), driver.active.get_current_stream
    through_triton, rest = compiled[grid], tuple(tail)

    def run(*tensors: Any) -> None:
        if _calls(runtime.launch_enter_hook) or _calls(runtime.launch_exit_hook):
            through_triton(*tensors, *rest)
            return
        # The launcher takes numbers as they are, and would ask the driver about each tensor. It still does for those of a CPU,
        # and refuses them.
        pointers = [t.data_ptr() if isinstance(t, Tensor) and t.is_cuda else t for t in tensors]
        if packed:
            launch(x, y, z, stream_of(device), *fixed, (*pointers, *rest))
        else:
            launch(x, y, z, stream_of(device), *fixed, *pointers, *rest)

    return run


def _calls(hook: Any) -> bool:
    """Whether a hook does anything: chains of no hooks are always there."""
    return hook is not None and getattr(hook, "calls", True) not in ([], ())


def _recorded(compiled: Any, grid: tuple[int, int, int], args: tuple) -> tuple[Callable, tuple, bool] | None:
    """(the launcher in C, what it takes between the stream and a kernel's arguments, whether it takes these as one tuple)."""
    run: Any = getattr(compiled, "run", None)
    unknown = object()
    sizes = (getattr(run, "global_scratch_size", unknown), getattr(run, "profile_scratch_size", unknown))
    if type(run).__name__ != "CudaLauncher" or sizes != (0, 0) or not hasattr(run, "launch"):
        return None
    if getattr(run, "launch_cooperative_grid", unknown) or getattr(run, "gsan_enabled", False):
        return None
    stream = object()
    got: list[tuple] = []
    recorder: Any = copy(run)
    recorder.launch = lambda *given: got.append(given)
    try:
        recorder(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *args)
    except Exception:
        return None
    if len(got) != 1 or got[0][:3] != tuple(grid) or got[0][3] is not stream:
        return None
    fixed = got[0][4:]
    # Compared by identity: tensors have no truth value.
    if fixed and isinstance(fixed[-1], tuple) and _same(fixed[-1], args):
        return run.launch, fixed[:-1], True
    if len(fixed) >= len(args) and _same(fixed[len(fixed) - len(args) :], args):
        return run.launch, fixed[: len(fixed) - len(args)], False
    return None


def _same(some: tuple, others: tuple) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))
