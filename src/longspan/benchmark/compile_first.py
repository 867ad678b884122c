"""Compiles what a comparison will run, several cases at a time in processes of their own, into the caches on disk."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from longspan.benchmark import peers
from longspan.benchmark.cases import Case
from longspan.benchmark.suites import Plan

LONGEST = 1 << 18  # tokens; longer cases fill the device's memory, and their kernels are those of shorter ones


def compile_first(plans: Sequence[Plan], device: str, jobs: int) -> None:
    """One training step of each side of each case, `jobs` at a time; a side that fails is left for the comparison to tell."""
    tasks = [(p.case, side) for p in plans for side in p.sides if p.case.length <= LONGEST and not side.startswith("sdpa")]
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # the processes are parallel enough
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=4) as pool:
        found = {pool.submit(compile_side, case, side, device): (case.name, side) for case, side in tasks}
        for number, future in enumerate(as_completed(found), 1):
            name, side = found[future]
            reason = future.exception() or future.result()
            why = f": {str(reason).splitlines()[0][:120]}" if reason else ""
            print(f"compiled {number}/{len(tasks)}: {name}, {side}{why}", file=sys.stderr, flush=True)


def compile_side(case: Case, side: str, device: str) -> str | None:
    """Runs one side of a case once, forward and backward; returns why it could not."""
    try:
        torch._dynamo.reset()
        q, k, v = case.inputs(device)
        attend = peers.find(side)(case, device)
        with torch.no_grad():
            attend(q, k, v)
        out = attend(q, k, v)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
