"""Times and memory that can be compared: warm-up left out, medians, both sides interleaved, devices synchronised."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from longspan_kernels.launch import kept_memory

Work = Callable[[], object]
FLUSH_BYTES = 256 << 20  # more than any L2
LONGEST_QUEUE = 0.1  # seconds the device is kept busy ahead of a timed launch, at most
QUEUED = 3e-4  # and at least
CYCLES_A_SECOND = 2e9  # at or above the clock of today's GPUs
HEATED = 1.0  # seconds of work until a GPU holds the clock that its power allows
FEWEST, FEWEST_HEATED = 3, 9  # rounds
CLOCK_EVERY = 0.005  # seconds between looks at the clock

# Read when torch first profiles: its profiler announces each start and stop on the terminal (torch 2.13), amid the results.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


@dataclass
class Measured:
    """Median seconds of one thing, its spread, the peak memory it added, how long the host takes to launch it, and the median
    clock of a GPU's processors that ended in it."""

    seconds: float
    low: float
    high: float
    samples: int
    peak_bytes: int | None = None
    host_seconds: float | None = None
    clock_mhz: float | None = None

    def plain(self) -> dict[str, float | int | None]:
        return {
            "ms": self.seconds * 1e3,
            "ms_low": self.low * 1e3,
            "ms_high": self.high * 1e3,
            "samples": self.samples,
            "peak_mib": None if self.peak_bytes is None else self.peak_bytes / (1 << 20),
            "host_ms": None if self.host_seconds is None else self.host_seconds * 1e3,
            "clock_mhz": self.clock_mhz,
        }


def time_interleaved(
    works: dict[str, Work],
    device: str,
    seconds: float = 1.0,
    most: int = 50,
    warm_up: int = 2,
    queued: bool = False,
    heated: bool = False,
) -> dict[str, Measured]:
    """Times several works in turn, so that a drift of the machine falls on all of them alike.

    Args:
        queued: on CUDA, start the clock behind other work that keeps the device busy until the host has launched this one. What
            is timed is then the device's part, as in a model whose host runs ahead; the host's is in `host_seconds`.
        heated: on CUDA, start the clock behind `HEATED` seconds of the same work, for works of unlike lengths: a short one that
            follows a pause runs at a clock that a long one cannot hold. The cache holds what that work leaves, and the host has
            to be the faster one for `queued` to be true. The clock is looked up as well, where nvidia-ml-py tells it.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device.startswith("cuda") else None
    samples: dict[str, list[float]] = {name: [] for name in works}
    clocks: dict[str, list[float]] = {name: [] for name in works}
    if not works:
        return {}
    for _ in range(warm_up):
        for work in works.values():
            work()
    synchronise(device)
    host = {name: host_seconds(work, device) if queued and flush is not None else None for name, work in works.items()}
    before = {
        name: math.ceil(HEATED / _once(work, device, flush, None)) if heated and flush is not None else 0
        for name, work in works.items()
    }
    began = time.perf_counter()
    while True:
        for name, work in works.items():
            samples[name].append(_once(work, device, flush, host[name], before[name], clocks[name]))
        rounds = len(next(iter(samples.values())))
        fewest = FEWEST_HEATED if any(before.values()) else FEWEST
        if rounds >= most or (rounds >= fewest and time.perf_counter() - began > seconds * len(works)):
            break
    out = {}
    for name, values in samples.items():
        ordered = sorted(values)
        cut = len(ordered) // 5
        out[name] = Measured(
            statistics.median(ordered),
            ordered[cut],
            ordered[-1 - cut],
            len(ordered),
            host_seconds=host[name],
            clock_mhz=statistics.median(clocks[name]) if clocks[name] else None,
        )
    return out


def host_seconds(work: Work, device: str, repeats: int = 5) -> float:
    """Median seconds until `work` returns, the device idle before it."""
    taken = []
    for _ in range(repeats):
        synchronise(device)
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    synchronise(device)
    return statistics.median(taken)


def _once(
    work: Work, device: str, flush: torch.Tensor | None, host: float | None, before: int = 0, clocks: list[float] | None = None
) -> float:
    if flush is None:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    flush.zero_()
    for _ in range(before):
        work()
    if host is not None and not before:
        torch.cuda._sleep(int(min(2.5 * host + QUEUED, LONGEST_QUEUE) * CYCLES_A_SECOND))
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    stop.record()
    if before and clocks is not None:
        clocks += _last_clock(stop)
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3


def _last_clock(stop: torch.cuda.Event) -> list[float]:
    """[MHz], the clock when an event was last seen to be ahead; [] where nothing tells."""
    seen: list[float] = []
    while not stop.query():
        try:
            seen = [float(torch.cuda.clock_rate())]
        except (ImportError, RuntimeError):  # no nvidia-ml-py, or a driver that refuses
            return []
        time.sleep(CLOCK_EVERY)
    return seen


def synchronise(device: str) -> None:
    """Waits until a GPU is done; on a CPU there is nothing to wait for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(work: Work, device: str) -> int:
    """Bytes allocated at the highest point of `work`, above what was held before it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # On a CPU torch's profiler reports each allocation and release in order. Memory that earlier results left is no allocation.
    kept_memory.results.clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    held = peak = 0
    for event in sorted(_memory_events(profile), key=lambda e: e[0]):
        held += event[1]
        peak = max(peak, held)
    return peak


def _memory_events(profile: torch.profiler.profile) -> list[tuple[int, int]]:
    results = profile.profiler.kineto_results if profile.profiler is not None else None
    if results is None:
        return []
    events: list = results.events()
    return [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
