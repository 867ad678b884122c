"""Says, without a GPU, which kernels a step at one length launches that a step at another has not compiled.

python tests/shared/kernels_of_lengths.py    # a line for each case: its name, and the kernels missed

Left out, since they do compile at some lengths: residue classes, patterns of even lines with few rows or key heads, and
lengths too short for a pattern to show.
"""

from __future__ import annotations

import torch

from longspan.patterns import BigBird, Fixed, Full, Local, Longformer, Pattern, Random
from longspan_kernels.block_sparse import launching, op, schedule, tuning
from longspan_kernels.block_sparse.backward import triton_backward
from longspan_kernels.block_sparse.forward import triton_forward
from longspan_kernels.block_sparse.resolve import clear_layouts

CASES: list[tuple[Pattern, bool]] = [
    (Full(), False), (Full(), True), (BigBird(64, 3, 3, 2), False), (BigBird(128, 3, 3, 2), False), (Random(4, 64), False),
    (BigBird(64, 3, 3, 2), True), (Local(512), True), (Longformer(512, range(64)), False), (Fixed(128, 32), True),
]  # fmt: skip
LENGTHS = [(4096, 3000), (3000, 4096), (5000, 8192), (8192, 16384)]
KINDS = [  # heads, key heads, width
    (16, 16, 64, torch.bfloat16), (16, 16, 128, torch.bfloat16), (8, 8, 64, torch.float32), (32, 16, 64, torch.bfloat16),
]  # fmt: skip


def step(pattern: Pattern, causal: bool, length: int, kind: tuple) -> tuple[set, set]:
    """What a forward and a backward pass launch, and what they compile ahead."""
    clear_layouts()  # they keep what was launched for them
    heads, key_heads, width, dtype = kind
    launched: set[tuple] = set()
    ahead: set[tuple] = set()

    def recorded(into: set):
        def record(plan: launching.Plan, *tensors) -> None:
            if all(plan.grid):
                into.add(plan._key(tensors, plan.kernel.arg_names[len(tensors) :]))

        return record

    launching.Plan.__call__, launching.Plan.compile = recorded(launched), recorded(ahead)  # type: ignore[method-assign]
    q = torch.empty(1, heads, length, width, dtype=dtype)
    k = torch.empty(1, key_heads, length, width, dtype=dtype)
    forward, rows, columns = op.layouts_for(q, k, pattern.key, causal, "triton", 0)
    out, lse = triton_forward(q, k, k, forward, scale=0.1)
    triton_backward(out, None, q, k, k, out, lse, rows, columns=columns, scale=0.1)
    return launched, ahead


def main() -> None:
    torch.cuda.current_device = lambda: 0
    launching.compiles_ahead = lambda x: True  # type: ignore[assignment]
    schedule.processors = lambda device: 132
    tuning._major = lambda device: 9  # type: ignore[assignment]
    for pattern, causal in CASES:
        for kind in KINDS:
            for first, then in LENGTHS:
                compiled = set.union(*step(pattern, causal, first, kind))
                launched, _ = step(pattern, causal, then, kind)
                missed = sorted({key[0] for key in launched - compiled})
                case = f"{str(pattern)[:24]} causal={causal} heads={kind[0]} D={kind[2]} {first}->{then}:"
                print(case, *missed)


if __name__ == "__main__":
    main()
