"""Searches the best launch of each kernel, and prints the table that triton/configs.py keeps.

For each head width and kind of line, one pattern that has it; each candidate is timed on the kernel alone, its results compared
with the first candidate's. Candidates compile in processes of their own first.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from longspan.benchmark.timing import Work, time_interleaved
from longspan.patterns import BigBird, Fixed, Full, Global, Local, Pattern, Predicate
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.compiler import Tiling, compile_layout
from longspan_kernels.block_sparse.layout import Layout
from longspan_kernels.block_sparse.triton.configs import TABLES, launched_as, row_kind, tilings
from longspan_kernels.launch.launcher import Launch


def scattered(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """A mask whose tiles are no bands."""
    return (q_idx // 64 - kv_idx // 64 < 8) & (q_idx >= kv_idx) & ((q_idx + kv_idx) % 3 != 0)


KERNELS = ("forward", "backward_rows", "backward_columns")
LINES: dict[str, tuple[Pattern, bool]] = {
    "short": (Local(512), True),
    "blocks": (BigBird(64, 3, 3, 2), False),
    "bits": (Predicate(scattered), False),
    "gathered": (Global(positions=sorted(random.Random(0).sample(range(8192), 2048))), True),
    "steps": (Fixed(128, 32), True),
    "middle": (BigBird(128, 3, 3, 2), False),
    "long": (Full(), True),
    "wide": (Full(), True),
}
WIDE_TILES = {"forward": ((128, 64), (128, 128)), "backward_rows": ((128, 64),), "backward_columns": ((64, 128),)}
TOLERANCE = 2e-2  # of the largest number; what differs by more was compiled wrong


@dataclass(frozen=True)
class Problem:
    """One kernel on one kind of line: the head width D, the dtype, the length T and H heads."""

    kernel: str
    head_dim: int
    lines: str
    dtype: torch.dtype = torch.bfloat16
    length: int = 8192
    width: int = 2048  # of all heads together

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    def layout(self, device: str, tile: tuple[int, int] | None = None, kernel: str | None = None) -> Layout:
        """The pattern's layout in the tiles of this kernel (or of the one named), or in others."""
        pattern, causal = LINES[self.lines]
        target = torch.device(device)
        rules = pattern.head_rules(self.length, self.length, self.heads, causal, target)
        capability = torch.cuda.get_device_capability(target) if target.type == "cuda" else (9, 0)
        own = tilings(self.head_dim, self.dtype, capability)[(kernel or self.kernel) != "forward"]
        tiling = Tiling(*tile, sizes=own.sizes) if tile else own
        return compile_layout(rules, self.length, self.length, self.heads, tiling, target)


def problems(head_dims: tuple[int, ...] = (64, 128), dtype: torch.dtype = torch.bfloat16) -> list[Problem]:
    return [Problem(kernel, d, lines, dtype) for d, lines, kernel in product(head_dims, LINES, KERNELS)]


def candidates(problem: Problem, hopper: bool) -> Iterator[Launch]:
    """Every launch worth a try, the plainest first."""
    columns = problem.kernel == "backward_columns"
    if problem.lines == "wide":
        yield TABLES[9][problem.kernel, 128 if problem.head_dim > 64 else 64, "long"] if hopper else Launch(4, 3)
        for tile, stages, serial in product(WIDE_TILES[problem.kernel], (2, 3), (False, True) if columns else (False,)):
            yield Launch(8, stages, by_tma=hopper, serial_masks=serial, tile=tile)
        return
    wide, long = problem.head_dim > 64, problem.lines == "long"
    # Three programs of 128 threads a processor fit in 168 registers a thread, four in 128. A limit that is not reached has the
    # compiler order instructions in another way.
    by_kernel: dict[str, list[int | None]] = {"forward": [None, 128], "backward_rows": [None, 128, 168]}
    limits = [None] if wide else by_kernel.get(problem.kernel, [None, 168])
    unmasked = problem.lines == "blocks"
    if unmasked and not wide:
        limits += [] if columns else [96]
    loops = (False,) if long or unmasked else (False, True)
    for stages, one_loop, by_tma in product((2, 3, 4) if unmasked else (2, 3), loops, (False, True) if hopper else (False,)):
        for registers in limits if by_tma else (None,):
            for in_sums in (False, True) if columns else (False,):
                launch = Launch(4, stages, one_loop, by_tma, registers=registers, in_sums=in_sums)
                yield launch
                if columns and not one_loop and not unmasked:
                    yield replace(launch, serial_masks=True)


def tensors_of(problem: Problem, device: str) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, problem.heads, problem.length, problem.head_dim)
    return tuple(torch.randn(shape, generator=generator, device=device).to(problem.dtype) for _ in range(4))


class Runner:
    """Runs one kernel of a problem with one launch; other kernels run as the table says."""

    def __init__(self, problem: Problem, device: str):
        from longspan_kernels.block_sparse.triton import backward, forward

        self.problem, self.forward, self.backward = problem, forward, backward
        self.layouts: dict[tuple[int, int] | None, Layout] = {None: problem.layout(device)}
        self.device = device
        self.q, self.k, self.v, self.dout = tensors_of(problem, device)
        self.scale = problem.head_dim**-0.5
        first = problem.layout(device, kernel="forward")
        self.out, self.lse = forward.triton_forward(self.q, self.k, self.v, first, Options(self.scale))

    def work(self, launch: Launch) -> Callable[[], tuple[Tensor, ...]]:
        """A call of the kernel; it plans its launches on the first call, for components of its own."""
        if launch.tile not in self.layouts:
            self.layouts[launch.tile] = self.problem.layout(self.device, launch.tile)
        layout = self.layouts[launch.tile]
        layout = replace(layout, components=[replace(component) for component in layout.components])  # launched anew

        def run() -> tuple[Tensor, ...]:
            with launched_as(**{self.problem.kernel: launch}):
                return self._run(layout)

        return run

    def _run(self, layout: Layout) -> tuple[Tensor, ...]:
        q, k, v = self.q, self.k, self.v
        if self.problem.kernel == "forward":
            return self.forward.triton_forward(q, k, v, layout, Options(self.scale))
        rows = self.problem.kernel == "backward_rows"
        found = self.backward.triton_backward(
            self.dout, None, q, k, v, self.out, self.lse, layout, Options(self.scale), sides=("rows",) if rows else ("columns",)
        )
        return found[:1] if rows else found[1:3]


def compile_candidate(problem: Problem, device: str, launch: Launch) -> None:
    """Compiles into Triton's cache on disk; a launch that cannot be compiled is found out when it is timed."""
    small = replace(problem, length=2048)
    try:
        Runner(small, device).work(launch)()
        torch.cuda.synchronize()
    except Exception as error:
        print(f"{problem.kernel} D={problem.head_dim} {problem.lines} {launch}: {error}"[:200], file=sys.stderr)


def tune(device: str, jobs: int, seconds: float, chosen: list[Problem] | None = None) -> Iterator[dict[str, Any]]:
    """One row a problem, as it is found: every candidate with its milliseconds, and the best."""
    hopper = device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] == 9
    chosen = problems() if chosen is None else chosen
    tasks = [(problem, device, launch) for problem in chosen for launch in candidates(problem, hopper)]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for number, _ in enumerate(pool.map(compile_candidate, *zip(*tasks, strict=True)), 1):
                print(f"\rcompiled {number}/{len(tasks)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    for number, problem in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {problem.kernel}, D={problem.head_dim}, {problem.lines}", file=sys.stderr, flush=True)
        yield tune_one(problem, device, seconds, list(candidates(problem, hopper)))


def tune_one(problem: Problem, device: str, seconds: float, launches: list[Launch]) -> dict[str, Any]:
    runner = Runner(problem, device)
    component = max(runner.layouts[None].components, key=lambda c: len(c.rows.index))
    works, failed = {}, {}
    expected: tuple[Tensor, ...] | None = None
    for launch in launches:
        work = runner.work(launch)
        try:
            got = work()
        except Exception as error:
            failed[str(launch)] = f"{type(error).__name__}: {error}"[:200]
            continue
        expected = got if expected is None else expected
        off = max(
            float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in zip(got, expected, strict=True)
        )
        if not off < TOLERANCE:
            failed[str(launch)] = f"differs from the first candidate by {off:.1e} of the largest number"
            continue
        works[launch] = work
    named: dict[str, Work] = {str(launch): work for launch, work in works.items()}
    measured = time_interleaved(named, device, seconds / max(1, len(named)), queued=True)
    best = min(works, key=lambda launch: measured[str(launch)].seconds, default=None)
    return {
        "kernel": problem.kernel,
        "width": problem.head_dim,
        "lines": problem.lines,
        "found_lines": row_kind(component),
        "best": None if best is None else source(best),
        "ms": {name: m.seconds * 1e3 for name, m in measured.items()},
        "failed": failed,
    }


def source(launch: Launch) -> str:
    """A launch as it is written in triton/configs.py."""
    extra = [f"{name}=True" for name in ("one_loop", "by_tma", "serial_masks", "in_sums") if getattr(launch, name)]
    extra += [f"{name}={getattr(launch, name)}" for name in ("registers", "tile") if getattr(launch, name)]
    return f"Launch({', '.join([str(launch.warps), str(launch.stages), *extra])})"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of the table, but for problems that no candidate solved and tiles of their own that did not pay."""
    rows = [row for row in rows if row["best"] and (row["lines"] != "wide" or "tile=" in row["best"])]
    return "\n".join(f'    ("{r["kernel"]}", {r["width"]}, "{r["lines"]}"): {r["best"]},' for r in rows)
