"""Every drawn call against the float64 oracle: shards of them, what each saw, and the summary of all.

    python tests/shared/exhaustive.py --processes 16 [--only blocked] [--seed 1]     # tests/exhaustive/SUMMARY.md

is `pytest -m exhaustive tests/exhaustive` without pytest, on as many processes, and needs no GPU. `drawn(RUNS["blocked"],
range(number, number + 1))` repeats the call that a failure names.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):  # itself, and its processes
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # kernels are interpreted, which is decided before others import triton
    from interpreted import import_interpreted

    import_interpreted()

import torch
from any_call import Calls, Drawn
from float64_oracle import Right, oracle
from interpreted import interpreting

from longspan.functional import sparse_attention
from longspan_kernels.block_sparse import clear_layouts

SUMMARY = Path(__file__).parents[1] / "exhaustive" / "SUMMARY.md"

SLACK = {
    "dense": 2,
    "blocked": 4,
    "auto": 4,
    "triton": 16,
}  # half digits that a log-sum-exp loses by the time weights come of it


@dataclass(frozen=True)
class Run:
    """Calls, the backends that each is given to, and how many are drawn in how many shards."""

    calls: Calls
    backends: tuple[str, ...]
    shards: int
    each: int


RUNS = {
    "blocked": Run(
        Calls(("float32", "float32", "float64", "bfloat16", "float16"), 150), ("dense", "blocked", "auto"), 100, 1000
    ),
    "triton": Run(Calls(("float32", "bfloat16", "float16"), 33, 32, most=2, bias_step=16), ("triton",), 60, 50),
}


@dataclass
class Counts:
    """What a shard saw: calls by kind, results beside their bounds, relative errors at ordinary scores."""

    calls: int = 0
    kinds: Counter = field(default_factory=Counter)
    of_bound: dict[str, tuple[float, int]] = field(default_factory=dict)  # "backend result" -> worst, and its call
    relative: dict[str, tuple[float, int]] = field(default_factory=dict)  # "backend dtype result" -> worst, and its call
    failures: list[str] = field(default_factory=list)

    def note(self, worst: dict[str, tuple[float, int]], name: str, value: float, number: int) -> None:
        if name not in worst or value > worst[name][0] or value != value:
            worst[name] = (value, number)


def results(x: Drawn, backend: str, keyless: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, log-sum-exp and gradients of a call; where a query has no key, NaN comes back."""
    leaves = {name: getattr(x, name).detach().requires_grad_() for name in ("q", "k", "v")}
    call = dict(x.call)
    if call.get("block_bias") is not None:
        leaves["bias"] = call["block_bias"] = call["block_bias"].detach().requires_grad_()
    torch.default_generator.manual_seed(x.seed)  # of the CPU alone: torch keeps a list of what to seed elsewhere
    with interpreting(backend):
        q, k, v = leaves["q"], leaves["k"], leaves["v"]
        out, lse = sparse_attention(q, k, v, x.pattern, return_lse=True, backend=backend, **call)
        dout = x.dout.masked_fill(keyless[..., None], float("nan"))
        dlse = x.dlse.to(lse.dtype).masked_fill(keyless, float("nan"))
        grads = torch.autograd.grad((out, lse), list(leaves.values()), (dout, dlse))
    return {"out": out.detach(), "lse": lse.detach()} | {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}


def right_results(x: Drawn, backends: tuple[str, ...]) -> Right:
    """What is right, with bounds for the backend that loses most digits."""
    seed = None
    if x.call.get("dropout_p"):
        torch.default_generator.manual_seed(x.seed)  # of the CPU alone: torch keeps a list of what to seed elsewhere
        seed = torch.randint(0, 1 << 31, (1,))
    return oracle(x, seed, max(SLACK[backend] for backend in backends))


def check(x: Drawn, right: Right, backend: str, counts: Counts) -> None:
    """Adds a call to the counts; what is out of its bound becomes a failure."""
    try:
        found = results(x, backend, right.keyless)
    except Exception as error:
        counts.failures.append(f"{backend} raised {type(error).__name__}: {error} for {x}")
        return
    dtype = str(x.q.dtype).removeprefix("torch.")
    for name, value in right.values.items():
        got = found[name].double()
        if got.shape != value.shape:
            counts.failures.append(f"{backend} {name} has shape {tuple(got.shape)}, not {tuple(value.shape)}, for {x}")
            continue
        same = got == value  # infinities too
        off = torch.where(same, 0.0, (got - value).abs())
        share = (off / right.bounds[name]).flatten()
        # NaN is never right, and max does not always say so.
        worst = float("inf") if bool(share.isnan().any()) else float(share.max()) if len(share) else 0.0
        counts.note(counts.of_bound, f"{backend} {name}", worst, x.seed)
        if x.score <= 1.0:
            finite = value.isfinite()
            size = float(value[finite].norm())
            if size > 1e-2 * x.score * finite.sum() ** 0.5:
                counts.note(counts.relative, f"{backend} {dtype} {name}", float(off[finite].norm()) / size, x.seed)
        if not worst <= 1.0:
            counts.failures.append(f"{backend} {name} is {worst:.3g} times as far off as it may be, for {x}")


def drawn(run: Run, numbers: range) -> Counts:
    counts = Counts()
    for number in numbers:
        x = run.calls(number)
        counts.calls += 1
        counts.kinds.update(set(x.kinds))
        right = right_results(x, run.backends)
        for backend in run.backends:
            check(x, right, backend, counts)
    return counts


def summary(seed: str, parts: dict[str, dict]) -> str:
    """What all shards together saw."""
    lines = ["# Drawn calls against the float64 oracle", "", "`pytest -m exhaustive tests/exhaustive`", ""]
    lines += [f"Seed {seed}; {datetime.now(UTC):%Y-%m-%d}; {_versions()}.", ""]
    for run, backends in (("blocked", "dense, blocked and auto"), ("triton", "the Triton kernels, interpreted")):
        own = [part for name, part in parts.items() if name.split("-")[1] == run]
        calls, failures = sum(part["calls"] for part in own), [x for part in own for x in part["failures"]]
        if not own:
            continue
        lines += [
            f"## {calls:,} calls on {backends} ({len(own)} of {RUNS[run].shards} shards): {len(failures)} out of bounds",
            "",
        ]
        kinds: Counter = Counter()
        for part in own:
            kinds.update(part["kinds"])
        lines += ["Calls of each kind: " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items())) + ".", ""]
        lines += ["| backend and result | farthest off, of what rounding allows | call |", "| --- | --- | --- |"]
        lines += [f"| {name} | {value:.3f} | {call} |" for name, (value, call) in _worst(own, "of_bound")]
        lines += ["", "Largest relative error of a whole tensor where scores are about 1 or less:", ""]
        lines += ["| backend, dtype and result | relative error | call |", "| --- | --- | --- |"]
        lines += [f"| {name} | {value:.1e} | {call} |" for name, (value, call) in _worst(own, "relative")]
        lines += [""]
        lines += [f"- {failure}" for failure in failures[:50]] + ([""] if failures else [])
    return "\n".join(lines).rstrip() + "\n"


def _worst(parts: list[dict], name: str) -> list[tuple[str, tuple[float, int]]]:
    found: dict[str, tuple[float, int]] = {}
    for part in parts:
        for key, (value, call) in part[name].items():
            if key not in found or value > found[key][0]:
                found[key] = (value, call)
    return sorted(found.items())


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        triton = f", triton {version('triton')}"
    except PackageNotFoundError:
        triton = ""
    return f"Python {platform.python_version()}, torch {torch.__version__}{triton}, {platform.machine()}"


def shard(name: str, number: int, seed: int) -> Counts:
    """One shard of a run."""
    torch.set_num_threads(1)
    clear_layouts()
    run = RUNS[name]
    first = seed * 10_000_000 + number * run.each
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return drawn(run, range(first, first + run.each))


def _one(work: tuple[str, int, int]) -> tuple[str, dict]:
    name, number, seed = work
    return f"{seed}-{name}-{number}", json.loads(json.dumps(vars(shard(*work))))


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--processes", type=int, default=1)
    words.add_argument("--only", choices=sorted(RUNS))
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--shards", type=int, help="of each run, the first so many")
    words.add_argument("--output", type=Path, default=SUMMARY)
    given = words.parse_args()
    names = [given.only] if given.only else sorted(RUNS, reverse=True)  # interpreted shards take longest: first
    works = [(name, n, given.seed) for name in names for n in range(RUNS[name].shards)[: given.shards]]
    parts: dict[str, dict] = {}
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for name, found in pool.imap_unordered(_one, works):
            parts[name] = found
            given.output.write_text(summary(str(given.seed), parts))
            failures = sum(len(part["failures"]) for part in parts.values())
            print(f"{len(parts)}/{len(works)} shards, {failures} failures, {time.monotonic() - started:.0f} s", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
