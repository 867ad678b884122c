"""Says, without a GPU, which kernels a step at some lengths launches that the first step, at one length, has not compiled.

python tests/shared/kernels_of_lengths.py    # a line for each case: its name, kernels, planned lengths served by
                                             # general ones of all, then length: kernels missed
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from longspan.patterns import BigBird, Fixed, Full, Global, Local, Longformer, Pattern, Predicate, Random, Strided
from longspan_kernels.block_sparse import op
from longspan_kernels.block_sparse.cache import clear_layouts
from longspan_kernels.block_sparse.device_layout import DeviceLayout
from longspan_kernels.block_sparse.triton import other_lengths, schedule, tuning
from longspan_kernels.block_sparse.triton.backward import triton_backward
from longspan_kernels.block_sparse.triton.choose_kernel import triton_choose, triton_choose_scored
from longspan_kernels.block_sparse.triton.forward import triton_forward
from longspan_kernels.launch import launcher as launching

asked_up_to = 0  # the length of the call at hand


def near(b, h, i, j):
    assert int(j.max()) < asked_up_to, "a function is asked for a length that nobody asked for"
    return i - j < 300


def scattered(b, h, i, j):
    return near(b, h, i, j) & ((i ^ j) % 5 == 0)


CASES: list[tuple[Pattern, bool]] = [
    (Full(), False), (Full(), True), (BigBird(64, 3, 3, 2), False), (BigBird(128, 3, 3, 2), False), (Random(4, 64), False),
    (BigBird(64, 3, 3, 2), True), (Local(512), True), (Longformer(512, range(64)), False), (Fixed(128, 32), True),
    (Local(128) | Strided(128), True), (Strided(100), True), (Strided(64), False),
    (Local(7) | Strided(7), True), (Local(56) | Strided(56), True), (Longformer(64, (0, 7, 500, 901)), False),
    (Predicate(near), True), (Predicate(scattered) | Strided(50), False),
    (Local(20) | Global(positions=range(0, 8000, 100)), False), (Fixed(100, 4), True),
]  # fmt: skip
ENOUGH = {16: 1, 17: 1}  # kinds tried of these, where not PER_CASE
FIRST = [2048, 300, 5000, 16384]
PER_CASE = 3  # kinds
LENGTHS = 10


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


class Compiler:
    """In the place of what compiles and launches: notes what was."""

    def __init__(self, monkeypatch):
        self.compiled: set[tuple] = set()
        self.missed: set[tuple] = set()
        self.general = self.always_general = False
        monkeypatch(torch.cuda, "current_device", lambda: 0)
        monkeypatch(schedule, "processors", lambda device: 132)
        monkeypatch(tuning, "_major", lambda device: 9)
        monkeypatch(launching, "compiles_ahead", lambda x: not launching.only_planned())
        monkeypatch(launching, "compile_all", lambda wanted, device: self.compiled.update(wanted))
        monkeypatch(launching.Plan, "_first", lambda plan, tensors: self.launch(plan, tensors))

    def launch(self, plan: launching.Plan, tensors: tuple) -> None:
        key = plan._key(tensors, plan.kernel.arg_names[len(tensors) :])
        strict = launching._here.only_compiled
        if strict and (self.always_general or key not in self.compiled):
            self.general = True
            raise launching.NotCompiled
        if key not in self.compiled:
            self.missed.add(key)

    def step(self, pattern: Pattern, causal: bool, q_len: int, k_len: int, kind: Kind, always_general: bool = False) -> set:
        """A forward and a backward pass; the keys of kernels that were not compiled before."""
        global asked_up_to
        asked_up_to = k_len
        clear_layouts()  # they keep what was launched for them
        self.missed, self.general, self.always_general = set(), False, always_general
        options = kind.options(q_len, k_len)
        # [B, T, H, D] in memory, as projections leave them
        q = torch.empty(1, q_len, kind.heads, kind.width, dtype=kind.dtype).transpose(1, 2)
        k = torch.empty(1, k_len, kind.key_heads, kind.width, dtype=kind.dtype).transpose(1, 2)
        forward, rows, columns = op.layouts_for(q, k, pattern.key, causal, "triton", 0)
        out, lse = triton_forward(q, k, k, forward, scale=0.1, **options)
        triton_backward(out, None, q, k, k, out, lse, rows, columns=columns, scale=0.1, **options)
        return self.missed

    def listed(self, length: int, width: int, ordered: bool, excluding: bool) -> set:
        """The same by a layout that is made at run time, with so many entries a line."""
        self.missed, heads, blocks = set(), 4, -(-length // 64)
        index = torch.zeros(2, heads, blocks, width, dtype=torch.int64)
        order = torch.zeros(2, heads, blocks * 64, dtype=torch.int64) if ordered else None
        excluded = torch.zeros(2, 1, length, dtype=torch.int32) if excluding else None
        made = DeviceLayout(index, index[..., 0], 64, 64, length, length, True, order, order, excluded)
        q = torch.empty(2, heads, length, 64, dtype=torch.bfloat16)
        layout = made.layout(heads, False)
        out, lse = triton_forward(q, q, q, layout, scale=0.1)
        triton_backward(out, None, q, q, q, out, lse, made.layout(heads, True), scale=0.1)
        return self.missed

    def choosing(self, length: int, width: int) -> set:
        """What chooses blocks of 64, for queries of such a width and by scores that are there."""
        self.missed = set()
        blocks = -(-length // 64)
        triton_choose(torch.empty(1, 4, length, width), torch.empty(1, 2, blocks, width), None, 3, 64, True)
        triton_choose_scored(torch.empty(1, 2, length, blocks), None, 0, length, 3, 64, True)
        return self.missed

    def first(self, pattern: Pattern, causal: bool, q_len: int, k_len: int, kind: Kind) -> set:
        """The first step of all: what it launches is compiled."""
        other_lengths._known.clear()
        self.compiled = set()
        self.compiled |= self.step(pattern, causal, q_len, k_len, kind)
        return self.compiled


def lengths_of(case: int, most: int) -> list[int]:
    """Drawn for each case, some of them short, some that tiles divide."""
    drawn = random.Random(case)
    short = [drawn.randint(33, 1500) for _ in range(LENGTHS // 2)]
    long = [64 * int(2 ** drawn.uniform(4, 8)) - drawn.choice((0, 0, 1, -1, 20)) for _ in range(LENGTHS // 2)]
    return [min(length, most - length % 100) for length in short + long]


def main() -> None:
    compiler = Compiler(setattr)
    cases = [(pattern, kind) for pattern in range(len(CASES)) for kind in range(ENOUGH.get(pattern, PER_CASE))]
    for number, (at, kind_at) in enumerate(cases):
        (pattern, causal), kind = CASES[at], KINDS[(PER_CASE * at + kind_at) % len(KINDS)]
        most = 1 << 20 if not isinstance(pattern, Predicate) and "Predicate" not in str(pattern) else 3000
        first, general, missed = min(FIRST[number % len(FIRST)], most), 0, []
        compiler.first(pattern, causal, kind.queries(first), first, kind)
        lengths = lengths_of(number, most)
        for at, length in enumerate(lengths):
            for always in (False, True)[: 2 - at % 2]:  # half of them by general kernels too
                found = compiler.step(pattern, causal, kind.queries(length), length, kind, always)
                general += compiler.general and not always and length >= other_lengths.LADDER[0]
                missed += [f"{length}:{key[0]}" for key in found]
        regimes = {other_lengths._regime(kind.queries(length), length) for length in (first, *lengths)}
        if len(other_lengths._known) != 2 * len(regimes):  # of a forward and a backward pass
            missed.append(f"{len(other_lengths._known)} kinds for {regimes}")
        name = f"{str(pattern)[:24]} causal={causal} {kind.heads}/{kind.key_heads} heads D={kind.width}"
        print(name, len(compiler.compiled), "kernels,", f"{general} of {len(lengths)} general:", *missed, flush=True)
    for ordered, excluding in ((False, False), (True, False), (False, True)):
        other_lengths._known.clear()
        compiler.compiled = set()
        compiler.compiled |= compiler.listed(500, 3, ordered, excluding)
        calls = [(100, 1), (700, 2), (1024, 15), (4096, 50), (4100, 64)]
        missed = [f"{length}:{key[0]}" for length, width in calls for key in compiler.listed(length, width, ordered, excluding)]
        if len(other_lengths._known) != 2:
            missed.append(f"{len(other_lengths._known)} kinds")
        name = f"lists ordered={ordered} excluding={excluding}"
        print(name, len(compiler.compiled), "kernels,", f"0 of {len(calls)} general:", *missed, flush=True)
    compiler.compiled = set()
    compiler.compiled |= compiler.choosing(500, 40)
    missed = [f"{length}:{key[0]}" for length in (64, 1024, 1000, 4096) for key in compiler.choosing(length, 40)]
    print("choices", len(compiler.compiled), "kernels, 0 of 4 general:", *missed, flush=True)


if __name__ == "__main__":
    main()
