"""How kernels are launched: how they are compiled, and what of a launch is worked out once.

Triton's own dispatch costs some 200 microseconds for kernels with this many arguments, more than many of these kernels run.
So it is gone through once for each set of compile-time values, and the compiled kernel is called directly after that, as Triton
3.6 to 3.9 do it. LONGSPAN_DIRECT_LAUNCH=0 has every launch go through Triton.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar, cast

import torch

DIRECT = os.environ.get("LONGSPAN_DIRECT_LAUNCH") != "0"
# What a profile of a device shows of Longspan's attention.
KERNELS = (
    "forward_rows", "merge_pieces", "prepare_rows", "backward_rows", "backward_columns", "add_pieces", "choose_by_means",
    "choose_by_scores",
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled.

    Attributes:
        warps, stages: warps a program, depth of the software pipeline.
        one_loop: one loop over full and masked tiles rather than one for each: better for short lines.
        by_tma: tiles in natural order come through Hopper's copy engine.
        registers: most registers a thread, or None; meant for tiles that come through the copy engine.
        serial_masks: masked tiles come in a loop of their own without a pipeline, which leaves registers to that over full
            tiles (backward_columns alone; it needs most).
        in_sums: lse and delta come in through the accumulators of the products they belong to (backward_columns alone). It
            frees 32 registers a thread, enough for a third program a processor, and costs more where two fit either way.
        tile: queries x keys, where the tiles are made for this launch; None for the tiles that a layout has.
    """

    warps: int
    stages: int
    one_loop: bool = False
    by_tma: bool = False
    registers: int | None = None
    serial_masks: bool = False
    in_sums: bool = False
    tile: tuple[int, int] | None = None


Function = TypeVar("Function", bound=Callable)
_stages: dict[tuple, int] = {}  # (kernel, tile, ...) -> the pipeline depth that fits
_compiled: dict[tuple, Any] = {}  # (kernel, device, all that it is compiled for) -> the compiled kernel
_ahead: set[tuple] = set()  # what was compiled and not launched


class Plan:
    """A launch whose numbers are known; tensors come with each call.

    Args:
        kernel: a function under triton.jit.
        programs: how many programs run.
        numbers: all arguments that are no tensors, by name.
        aligned: whether tensors start at multiples of 16 bytes, so that what is compiled for one call serves the next.
    """

    def __init__(self, kernel, programs: int, numbers: dict, choice: Launch, aligned: bool):
        self.kernel, self.numbers, self.choice, self.aligned = kernel, numbers, choice, aligned
        self.grid = (programs, 1, 1)
        self.run: Callable | None = None
        self.tail: list = []

    def __call__(self, *tensors) -> None:
        if self.run is not None:
            self.run(*tensors, *self.tail)
        elif all(self.grid):
            self._first(tensors)

    def compile(self, *tensors) -> None:
        """Compiles and launches nothing: for what calls of other lengths launch and this one does not.

        A failure is a warning, since this call can do without.
        """
        on_gpu = any(isinstance(x, torch.Tensor) and x.is_cuda for x in tensors)
        if not (hasattr(self.kernel, "params") and on_gpu and all(self.grid)):
            return
        key = self._key(tensors, self.kernel.arg_names[len(tensors) :]) if self.aligned else None
        if key is not None and (key in _compiled or key in _ahead):
            return
        depth = _stages.get(self._depth_key(), self.choice.stages)
        options = {"num_warps": self.choice.warps, "num_stages": depth, **self._options()}
        try:
            self.kernel.warmup(*tensors, grid=self.grid, **self.numbers, **options)
        except Exception as error:
            warnings.warn(f"{self.kernel.__name__} cannot be compiled ahead for other lengths: {error}", stacklevel=2)
        if key is not None:
            _ahead.add(key)

    def _first(self, tensors: tuple) -> None:
        names = self.kernel.arg_names[len(tensors) :]
        key = None
        if DIRECT and self.aligned and hasattr(self.kernel, "params"):
            key = self._key(tensors, names)
        compiled = _compiled.get(key) if key is not None else None
        self.tail = [self.numbers[name] for name in names]
        if compiled is None:
            compiled = self._dispatch(tensors)
            if key is None or compiled is None:
                return
            _compiled[key] = compiled
            self.run = compiled[self.grid]
        else:
            self.run = compiled[self.grid]
            self.run(*tensors, *self.tail)

    def _key(self, tensors: tuple, names: list[str]) -> tuple:
        # Triton compiles anew for constants, types, absent tensors, and whether a stride divides by 16 or is 1.
        params = {param.name: param for param in self.kernel.params}
        compiled_for: list = []
        for name in names:
            value = self.numbers[name]
            if params[name].is_constexpr:
                compiled_for.append(value)
            elif not params[name].do_not_specialize and isinstance(value, int):
                compiled_for.append((value % 16 == 0, value == 1))
        kinds = (
            None if x is None else x.dtype if isinstance(x, torch.Tensor) else (x.base.dtype, *x.block_shape) for x in tensors
        )
        return (self.kernel.__name__, torch.cuda.current_device(), self.choice, *kinds, *compiled_for)

    def _dispatch(self, tensors: tuple):
        """Through Triton; where the pipeline does not fit in shared memory, with a shallower one, remembered."""
        numbers, choice, key = self.numbers, self.choice, self._depth_key()
        depth = _stages.get(key, choice.stages)
        while True:
            try:
                options = {"num_warps": choice.warps, "num_stages": depth, **self._options()}
                return self.kernel[self.grid](*tensors, **numbers, **options)
            except Exception as error:
                if type(error).__name__ != "OutOfResources" or depth == 1:
                    raise
                depth -= 1
                _stages[key] = depth

    def _depth_key(self) -> tuple:
        of = (self.numbers.get(n) for n in ("BM", "BN", "BD", "EXACT", "HAS_BITS", "MERGE"))
        return (self.kernel.__name__, self.choice, *of)

    def _options(self) -> dict:
        return {} if self.choice.registers is None else {"maxnreg": self.choice.registers}


def compiles_ahead(x: torch.Tensor) -> bool:
    """Whether kernels for other lengths are compiled with those for this one."""
    return x.is_cuda


def on_its_device(function: Function) -> Function:
    """Runs a function with the device of its first argument, a tensor, as the current one.

    Triton launches on the current device and its stream, wherever the tensors lie.
    """

    @wraps(function)
    def run(first, *rest, **named):
        if not first.is_cuda:
            return function(first, *rest, **named)
        with torch.cuda.device(first.device):
            return function(first, *rest, **named)

    return cast(Function, run)


def without_tma(choice: Launch) -> Launch:
    """The same launch where the copy engine cannot serve: addresses take registers of their own."""
    return replace(choice, by_tma=False, registers=None)


SMALL = Launch(4, 1)  # for kernels that only pass over rows
