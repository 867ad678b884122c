"""Drawn calls of every kind against a float64 oracle: a few always, a hundred thousand by `pytest -m exhaustive`.

    pytest -m exhaustive tests/exhaustive [-n 2]      # about an hour on one core; -k blocked or -k triton for a part
    LONGSPAN_EXHAUSTIVE_SEED=1 pytest -m exhaustive   # other draws

Shards leave their counts in pytest's cache, and the last one makes SUMMARY.md of them. A failure names the number of its call:
`drawn(RUNS["blocked"], range(number, number + 1))` repeats it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from any_call import CALLS_A_PATTERN, Calls, Drawn
from float64_oracle import Right, oracle
from interpreted import BACKENDS_HERE, interpreting

from longspan.functional import sparse_attention
from longspan_kernels.block_sparse import clear_layouts

SEED = int(os.environ.get("LONGSPAN_EXHAUSTIVE_SEED", "0"))
SLACK = {"dense": 2, "blocked": 4, "triton": 16}  # half digits that a log-sum-exp loses by the time weights come of it


@dataclass(frozen=True)
class Run:
    """Calls, the backends that each is given to, and how many are drawn in how many shards."""

    calls: Calls
    backends: tuple[str, ...]
    shards: int
    each: int


RUNS = {
    "blocked": Run(Calls(("float32", "float32", "float64", "bfloat16", "float16"), 150), ("dense", "blocked"), 100, 1000),
    "triton": Run(Calls(("float32", "bfloat16", "float16"), 33, 32, most=2), ("triton",), 60, 50),
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


@pytest.mark.parametrize(("name", "most"), [("blocked", 150), ("triton", 5)])
def test_a_few_calls(name, most):
    if not set(RUNS[name].backends) <= set(BACKENDS_HERE):
        pytest.skip("a GPU is here: tests/gpu runs the compiled kernels")
    found = drawn(RUNS[name], range(5_000_000, 5_000_000 + most * CALLS_A_PATTERN, CALLS_A_PATTERN))
    assert not found.failures, "\n".join(found.failures[:5])
    assert found.calls == most and len(found.kinds) > (25 if name == "blocked" else 8)


SHARDS = [(name, shard) for name, run in RUNS.items() for shard in range(run.shards)]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "shard"), SHARDS, ids=lambda x: str(x))
def test_every_call(name, shard, pytestconfig):
    run = RUNS[name]
    if not set(run.backends) <= set(BACKENDS_HERE):
        pytest.skip("a GPU is here: tests/gpu runs the compiled kernels")
    first = SEED * 10_000_000 + shard * run.each
    clear_layouts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = drawn(run, range(first, first + run.each))
    folder = pytestconfig.cache.mkdir("exhaustive")
    (folder / f"{SEED}-{name}-{shard}.json").write_text(json.dumps(vars(found)))
    assert not found.failures, f"{len(found.failures)} failures\n" + "\n".join(found.failures[:10])
