"""Launches Triton kernels: works out a launch once, compiles several kernels at once, then calls the compiled kernel directly.

Triton's own dispatch costs some 200 microseconds for kernels with this many arguments, more than many of these kernels run.
So it is gone through once for each set of compile-time values, and the compiled kernel is called directly after that, as Triton
3.6 to 3.9 do it; from a plan's second launch on, without Triton's Python (direct.py). LONGSPAN_DIRECT_LAUNCH=0 has every launch
go through Triton.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from threading import local
from typing import Any, TypeVar, cast

import torch

from longspan_kernels.launch.direct import direct_launch
from longspan_kernels.launch.graphs import cleared_by, remembered

INSTALLED = find_spec("triton") is not None
OLDEST = (8, 0)  # Ampere
DIRECT = os.environ.get("LONGSPAN_DIRECT_LAUNCH") != "0"
MOST_THREADS = 16  # that compile at once, in each process of a node
# What a profile of a device shows of Longspan's attention.
KERNELS = (
    *("forward_rows", "merge_splits", "prepare_rows", "backward_rows", "backward_columns", "add_splits"),
    *("segment_states", "carry_states", "attend_segments", "invert_systems"),
    *("make_operands", "run_states", "read_states", "local_gradients", "run_states_back", "finish_gradients"),
    *("convolve", "differentiate_convolution", "convolve_back"),
    *("hash_directions", "find_nearest", "add_clusters", "lay_out_buckets"),
    *("attend_buckets", "merge_rounds", "differentiate_buckets", "add_rounds"),
    *("average_blocks", "choose_by_means", "choose_by_scores", "choose_by_importance"),
    *("count_entries", "sum_chunks", "start_counted", "place_entries"),
    *("number_lists", "start_lists", "cut_lists", "row_numbers", "merge_parts", "add_runs"),
    *("selected_parts", "selected_rows", "selected_columns"),
    *("set_gates", "differentiate_gates", "sum_gate_parts", "add_gated", "differentiate_gated"),
    *("merge_branches", "differentiate_branches"),
    *("compress_rows", "differentiate_inside", "differentiate_places", "finish_weights"),
    *("index_scores", "best_tokens", "attend_tokens", "differentiate_tokens", "add_tokens"),
    *("mark_picks", "count_picks", "place_words"),
    *("balance_rows", "balance_columns", "balance_end", "balance_back", "balance_back_columns", "balance_back_end"),
    *("balance_head", "balance_head_back"),
    *("sum_blocks", "average_so_far", "add_later", "spread_gradients"),
)


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled.

    Attributes:
        warps, stages: warps a program, depth of the software pipeline.
        one_loop: one loop over full and masked tiles rather than one for each: better for short tile rows.
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
_ahead: dict[tuple, int] = {}  # kernels that are compiled and not launched yet, with the pipeline depth they have
forms_compiled: dict[tuple, bool] = {}  # of calls by lists made at run time: their kernels are compiled


@cleared_by
def forget_kernels() -> None:
    """Forgets compiled kernels; the next launch by a new plan compiles them again, or reads them from Triton's disk cache."""
    for cache in (_stages, _compiled, _ahead, forms_compiled):
        cache.clear()


class _Here(local):
    """Thread-local: the launches that `compiling` collects instead of making them."""

    wanted: dict[tuple, tuple[Plan, tuple]] | None = None


_here = _Here()


class Plan:
    """A launch with all its numbers; calls supply the tensors, which start at multiples of 16 bytes.

    Args:
        kernel: a function under triton.jit.
        programs: how many programs run.
        numbers: all arguments that are not tensors, by name.
    """

    def __init__(self, kernel, programs: int, numbers: dict, choice: Launch):
        self.kernel, self.numbers, self.choice = kernel, numbers, choice
        self.grid = (programs, 1, 1)
        self.run: Callable | None = None  # of the tensors

    def __call__(self, *tensors) -> None:
        if _here.wanted is not None:  # first: what is collected has no memory, and a launch would read where nothing is
            self._want(tensors, _here.wanted)
        elif self.run is not None:
            self.run(*tensors)
        elif all(self.grid):
            self._first(tensors)

    def _want(self, tensors: tuple, wanted: dict) -> None:
        key = self._key(tensors)
        if all(self.grid) and key not in _compiled and key not in _ahead:
            wanted.setdefault(key, (self, tensors))

    def compile(self, tensors: tuple) -> Any:
        """The kernel for such tensors, which need no memory; in triton.AsyncCompileMode, its future. None where it does not
        compile: its launch raises the error."""
        with suppress(Exception):
            return self.kernel.warmup(*tensors, grid=self.grid, **self.numbers, **self._options(self.depth()))
        return None

    def shallower(self) -> bool:
        """Makes later launches use one pipeline stage less; False where there is only one."""
        depth = self.depth()
        _stages[self.depth_key()] = max(1, depth - 1)
        return depth > 1

    def depth(self) -> int:
        """Pipeline stages: those that the launch asks for, or those that are known to fit."""
        return _stages.get(self.depth_key(), self.choice.stages)

    def _first(self, tensors: tuple) -> None:
        key = self._key(tensors) if DIRECT and hasattr(self.kernel, "params") else None
        compiled = None if key is None else _compiled.get(key)
        if compiled is not None:
            self.run = self._direct(compiled, tensors)
            self.run(*tensors)
            return
        compiled = self._dispatch(tensors, key)
        if key is not None and compiled is not None:
            _compiled[key] = compiled
            self.run = self._direct(compiled, tensors)

    def _direct(self, compiled: Any, tensors: tuple) -> Callable:
        """Launches the compiled kernel on tensors, past as much of Triton as is known to be safe."""
        tail = [self.numbers[name] for name in self.kernel.arg_names[len(tensors) :]]
        run = direct_launch(compiled, self.grid, tensors, tail)
        if run is not None:
            return run
        through_triton = compiled[self.grid]
        return lambda *tensors: through_triton(*tensors, *tail)

    def _key(self, tensors: tuple) -> tuple:
        # Triton compiles anew for constants, types, absent tensors, and whether a number divides by 16 or is 1.
        params = {param.name: param for param in self.kernel.params}
        compiled_for: list = []
        for name in self.kernel.arg_names[len(tensors) :]:
            value = self.numbers[name]
            if params[name].is_constexpr:
                compiled_for.append(value)
            elif not params[name].do_not_specialize and isinstance(value, (int, tuple)):
                compiled_for.append(_kind(value))
        return (self.kernel.__name__, torch.cuda.current_device(), self.choice, *map(_kind, tensors), *compiled_for)

    def _dispatch(self, tensors: tuple, key: tuple | None):
        """Launches through Triton, with the depth that was compiled ahead. A pipeline that does not fit in shared memory is
        made shallower, which is remembered."""
        while True:
            try:
                depth = self.depth() if key is None else _ahead.get(key, self.depth())
                return self.kernel[self.grid](*tensors, **self.numbers, **self._options(depth))
            except Exception as error:
                ahead = None if key is None else _ahead.pop(key, None)
                if type(error).__name__ != "OutOfResources" or (ahead is None and not self.shallower()):
                    raise

    def depth_key(self) -> tuple:
        """The key under which the fitting pipeline depth is remembered."""
        constants = self.numbers["C"]._asdict() if "C" in self.numbers else self.numbers
        of = (constants.get(name) for name in ("BM", "BN", "BD", "EXACT", "HAS_BITS", "MERGE"))
        return (self.kernel.__name__, self.choice, *of)

    def _options(self, depth: int) -> dict:
        limit = {} if self.choice.registers is None else {"maxnreg": self.choice.registers}
        return {"num_warps": self.choice.warps, "num_stages": depth, **limit}


@contextmanager
def compiling(device: torch.device) -> Iterator[dict[tuple, tuple[Plan, tuple]]]:
    """Collects the launches of its body instead of making them, then compiles their kernels. Tensors need no memory."""
    wanted: dict[tuple, tuple[Plan, tuple]] = {}
    _here.wanted = wanted
    try:
        yield wanted
    finally:
        _here.wanted = None
    if wanted:
        compile_all(wanted, device)


def collecting() -> bool:
    """Whether this thread collects launches instead of making them."""
    return _here.wanted is not None


def compile_all(wanted: dict[tuple, tuple[Plan, tuple]], device: torch.device) -> None:
    """Compiles plans in parallel, each with a pipeline that fits shared memory, and loads them; skips what does not compile."""
    from triton import AsyncCompileMode, FutureKernel
    from triton.runtime import driver

    index = torch.cuda.current_device() if device.index is None else device.index
    most = driver.active.utils.get_device_properties(index)["max_shared_mem"]  # bytes of shared memory, as a launch knows it
    while wanted:
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "longspan-compile") as pool:
            with AsyncCompileMode(pool, ignore_errors=True):
                made = {key: plan.compile(tensors) for key, (plan, tensors) in wanted.items()}
            made = {key: kernel.kernel if isinstance(kernel, FutureKernel) else kernel for key, kernel in made.items()}
            list(pool.map(lambda kernel: _load(kernel, device), made.values()))
        too_deep = set()
        for key, (plan, _) in wanted.items():
            if (kernel := made[key]) is not None:
                _ahead[key] = plan.depth()
                if kernel.metadata.shared > most:
                    too_deep.add(plan.depth_key())
        plans = {plan.depth_key(): plan for plan, _ in wanted.values()}
        too_deep = {key for key in too_deep if plans[key].shallower()}
        wanted = {key: plan for key, plan in wanted.items() if plan[0].depth_key() in too_deep}


def _kind(value: Any) -> Any:
    """What a kernel is specialised on: the type of a tensor or descriptor, the divisibility of a number."""
    if isinstance(value, tuple):
        return tuple(map(_kind, value))
    if isinstance(value, int):
        return value % 16 == 0, value == 1, -(1 << 31) <= value < 1 << 31
    if value is None or isinstance(value, float):
        return None
    return value.dtype if isinstance(value, torch.Tensor) else (value.base.dtype, *value.block_shape)


def _load(kernel: Any, device: torch.device) -> None:
    """Loads a kernel and compiles its launcher, which Triton would do at the first launch."""
    with suppress(Exception), torch.cuda.device(device):  # a launch says why, and one that does not fit becomes shallower
        kernel.run  # noqa: B018


def on_its_device(function: Function) -> Function:
    """Makes the device of the first argument, a tensor, the current one while the function runs.

    Triton launches on the current device and its stream, wherever the tensors are.
    """

    @wraps(function)
    def run(first, *rest, **named):
        # Entering a context costs the host some microseconds, and most calls need none.
        if not first.is_cuda or first.device.index == torch.cuda.current_device():
            return function(first, *rest, **named)
        with torch.cuda.device(first.device):
            return function(first, *rest, **named)

    return cast(Function, run)


def run_kernel(kernel: Any, programs: int, choice: Launch, *tensors: torch.Tensor | None, **numbers: Any) -> None:
    """Launches a kernel on tensors, its first arguments; `numbers` are all others, by name.

    Plans are cached by everything they depend on, for ops that keep no plans of their own.
    """
    kinds = tuple([None if x is None else x.dtype for x in tensors])
    device = (tensors[0] if tensors[0] is not None else next(x for x in tensors if x is not None)).device
    _plan_of(kernel, programs, choice, device, kinds, tuple(numbers), tuple(numbers.values()))(*tensors)


@remembered(4096)
def _plan_of(
    kernel: Any, programs: int, choice: Launch, device: torch.device, kinds: tuple, names: tuple[str, ...], values: tuple
) -> Plan:
    return Plan(kernel, programs, dict(zip(names, values, strict=True)), choice)


def from_16_bytes(x: torch.Tensor) -> torch.Tensor:
    """x itself where it starts at a multiple of 16 bytes, as kernels are compiled for it, else a copy that does."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def as_contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    """x, or a copy of it, contiguous and from a multiple of 16 bytes on; None where there is none."""
    return None if x is None else from_16_bytes(x.contiguous())


def readable(x: torch.Tensor) -> torch.Tensor:
    """x itself where its last dimension is contiguous and it starts at a multiple of 16 bytes, else a copy."""
    return from_16_bytes(x if x.stride(-1) == 1 else x.contiguous())


def on_meta(x: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and strides without memory."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def alignment(head_dim: int, *tensors: torch.Tensor) -> int:
    """The largest power of two (in elements, up to 16) that every row of the tensors starts at a multiple of. It depends on the
    length only for unusual strides."""
    align = min(16, head_dim & -head_dim)
    for x in tensors:
        # One token counts as many do: another length may have them.
        if any(stride % align for dim, stride in enumerate(x.stride()[:3]) if dim == 2 or x.shape[dim] > 1):
            return 1
    return align


def width_of(head_dim: int) -> int:
    """The power of two that a head width is padded to."""
    return max(16, 1 << (head_dim - 1).bit_length())


@remembered(16)
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; elsewhere that of Hopper, whose tiles the interpreter tries."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def triton_runs_on(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device, or None where they can."""
    if not INSTALLED:
        return "triton is not installed (it has wheels for Linux only)"
    if os.environ.get("TRITON_INTERPRET") == "1" and device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"Triton kernels need a CUDA device, not {device.type} (TRITON_INTERPRET=1 runs them on the CPU, slowly)"
    if capability_of(device) < OLDEST:
        return "Triton kernels need compute capability 8.0 (Ampere) or newer"
    return None


SMALL = Launch(4, 1)  # for kernels that only pass over rows
SPLIT_ROWS = 16  # of partial results, that a program adds up: every tile side is a multiple
