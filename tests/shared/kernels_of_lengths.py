"""Says, without a GPU, which kernels a step at some lengths launches that the first step, at one length, has not compiled.

python tests/shared/kernels_of_lengths.py    # a line for each case: its name, then length: kernels missed
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from longspan.patterns import BigBird, Fixed, Full, Local, Longformer, Pattern, Random, Strided
from longspan_kernels.block_sparse import launching, op, other_lengths, schedule, tuning
from longspan_kernels.block_sparse.backward import triton_backward
from longspan_kernels.block_sparse.forward import triton_forward
from longspan_kernels.block_sparse.resolve import clear_layouts

CASES: list[tuple[Pattern, bool]] = [
    (Full(), False), (Full(), True), (BigBird(64, 3, 3, 2), False), (BigBird(128, 3, 3, 2), False), (Random(4, 64), False),
    (BigBird(64, 3, 3, 2), True), (Local(512), True), (Longformer(512, range(64)), False), (Fixed(128, 32), True),
    (Local(128) | Strided(128), True), (Strided(100), True), (Strided(64), False),
    (Local(7) | Strided(7), True), (Local(56) | Strided(56), True), (Longformer(64, (0, 7, 500, 901)), False),
]  # fmt: skip
FIRST = [2048, 300, 5000, 16384]
PER_CASE = 3  # kinds
LENGTHS = 14


@dataclass(frozen=True)
class Kind:
    heads: int
    key_heads: int
    width: int
    dtype: torch.dtype = torch.bfloat16
    queries: Callable[[int], int] = lambda k_len: k_len  # of so many keys
    options: Callable[[int, int], dict] = lambda q_len, k_len: {}


def _padded(q_len: int, k_len: int) -> dict:
    return {"q_lengths": torch.ones(1, dtype=torch.int32), "k_lengths": torch.ones(1, dtype=torch.int32)}


def _segments(q_len: int, k_len: int) -> dict:
    segments = {"q_segments": torch.empty(1, q_len, dtype=torch.int32), "k_segments": torch.empty(1, k_len, dtype=torch.int32)}
    return segments | {"dropout_p": 0.1, "seed": torch.zeros(1, dtype=torch.int64)}


KINDS = [
    Kind(16, 16, 64), Kind(1, 1, 64), Kind(32, 8, 64), Kind(32, 2, 128), Kind(16, 16, 128), Kind(8, 8, 40),
    Kind(8, 8, 64, torch.float32), Kind(12, 12, 64, options=_padded), Kind(4, 4, 64, options=_segments),
    Kind(8, 8, 64, queries=lambda k_len: min(k_len, 64)), Kind(16, 16, 64, queries=lambda k_len: 1),
    Kind(8, 8, 64, queries=lambda k_len: -(-k_len // 2)),
]  # fmt: skip


def step(pattern: Pattern, causal: bool, length: int, kind: Kind) -> tuple[set, set]:
    """What a forward and a backward pass launch, and what they compile ahead."""
    clear_layouts()  # they keep what was launched for them
    other_lengths._known.clear()
    launched: set[tuple] = set()
    ahead: set[tuple] = set()

    def launch(plan: launching.Plan, tensors: tuple) -> None:
        launched.add(plan._key(tensors, plan.kernel.arg_names[len(tensors) :]))

    launching.Plan._first = launch  # type: ignore[method-assign]
    launching.compile_all = lambda wanted, device: ahead.update(wanted)
    q_len, options = kind.queries(length), kind.options(kind.queries(length), length)
    # [B, T, H, D] in memory, as projections leave them
    q = torch.empty(1, q_len, kind.heads, kind.width, dtype=kind.dtype).transpose(1, 2)
    k = torch.empty(1, length, kind.key_heads, kind.width, dtype=kind.dtype).transpose(1, 2)
    forward, rows, columns = op.layouts_for(q, k, pattern.key, causal, "triton", 0)
    out, lse = triton_forward(q, k, k, forward, scale=0.1, **options)
    triton_backward(out, None, q, k, k, out, lse, rows, columns=columns, scale=0.1, **options)
    return launched, ahead


def lengths_of(case: int) -> list[int]:
    """Drawn for each case, some of them short, some that tiles divide."""
    drawn = random.Random(case)
    short = [drawn.randint(33, 1500) for _ in range(LENGTHS // 2)]
    return short + [64 * int(2 ** drawn.uniform(4, 8)) - drawn.choice((0, 0, 1, -1, 20)) for _ in range(LENGTHS // 2)]


def main() -> None:
    torch.cuda.current_device = lambda: 0
    schedule.processors = lambda device: 132
    tuning._major = lambda device: 9  # type: ignore[assignment]
    cases = [(pattern, kind) for pattern in range(len(CASES)) for kind in range(PER_CASE)]
    for number, (at, kind_at) in enumerate(cases):
        (pattern, causal), kind = CASES[at], KINDS[(PER_CASE * at + kind_at) % len(KINDS)]
        launching.compiles_ahead = lambda x: not launching.only_planned()
        compiled = set.union(*step(pattern, causal, FIRST[number % len(FIRST)], kind))
        launching.compiles_ahead = lambda x: False
        missed = []
        for length in lengths_of(number):
            launched, _ = step(pattern, causal, length, kind)
            missed += [f"{length}:{key[0]}" for key in launched - compiled]
        name = f"{str(pattern)[:24]} causal={causal} {kind.heads}/{kind.key_heads} heads D={kind.width}"
        print(name, len(compiled), "kernels:", *missed, flush=True)


if __name__ == "__main__":
    main()
