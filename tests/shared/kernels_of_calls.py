"""Says, without a GPU, which kernels first calls compile and which ones they launch, as JSON.

python tests/shared/kernels_of_calls.py
"""

from __future__ import annotations

import json
from typing import Any

import torch

from longspan.patterns import BigBird, Fixed, Full, Local, Longformer, Pattern, Strided
from longspan_kernels.block_sparse import backends, clear_layouts
from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.layout import DeviceLayout
from longspan_kernels.block_sparse.triton import configs, schedule
from longspan_kernels.block_sparse.triton.backward import plan_call, triton_backward
from longspan_kernels.block_sparse.triton.call import Call
from longspan_kernels.block_sparse.triton.forward import triton_forward
from longspan_kernels.launch import launcher

PATTERNS: list[tuple[Pattern, bool]] = [
    (Full(), False),
    (Full(), True),
    (BigBird(64, 3, 3, 2), False),
    (BigBird(64, 3, 3, 2), True),
    (Local(512), True),
    (Longformer(512, range(64)), False),
    (Fixed(128, 32), True),
    (Local(128) | Strided(128), True),
    (Strided(100), True),
]
LENGTHS = (300, 512, 1000, 1024, 2048, 3000, 4096, 6000, 9600, 16384)
COMPILED_AT = (1000, 4096)
LISTS = ((700, 3), (2100, 3), (4100, 3))  # length, entries a row
CPU = torch.device("cpu")


class Machine:
    """A GPU that is not here: notes what is compiled and what is launched."""

    def __init__(self) -> None:
        self.compiled: set[tuple] = set()
        self.launched: set[tuple] = set()
        stand_in: Any = setattr
        stand_in(torch.cuda, "current_device", lambda: 0)
        stand_in(schedule, "processors", lambda device: 132)
        stand_in(configs, "_major", lambda device: 9)
        stand_in(launcher, "compile_all", lambda wanted, device: self.compiled.update(wanted))
        stand_in(launcher.Plan, "_first", lambda plan, tensors: self.launch(plan, tensors))

    def launch(self, plan: launcher.Plan, tensors: tuple) -> None:
        self.launched.add(plan._key(tensors))

    def plan(self, pattern: Pattern, causal: bool, length: int, heads: int = 16) -> None:
        """What a first call compiles."""
        clear_layouts()
        q = torch.empty(1, heads, length, 64, dtype=torch.bfloat16, device="meta")
        forward, *backward = backends.layouts_for(q, q, pattern.key, causal, "triton", 0, CPU)
        with launcher.compiling(CPU):
            plan_call(Call(q, q, q, forward, Options(0.125), device=CPU), (backward[0], backward[1]))

    def step(self, pattern: Pattern, causal: bool, length: int, heads: int = 16) -> None:
        """What a forward and a backward pass launch."""
        clear_layouts()
        q, k, v = (torch.empty(1, heads, length, 64, dtype=torch.bfloat16) for _ in range(3))
        forward, rows, columns = backends.layouts_for(q, k, pattern.key, causal, "triton", 0)
        out, lse = triton_forward(q, k, v, forward, Options(0.125))
        triton_backward(out, None, q, k, v, out, lse, rows, Options(0.125), columns=columns)

    def by_lists(self, length: int, width: int) -> None:
        """The same by a layout that is made at run time."""
        index = torch.zeros(1, 2, -(-length // 64), width, dtype=torch.int64)
        layout = DeviceLayout(index, index[..., 0], 64, 64, length, length, True).layout(2, True)
        q = torch.empty(1, 2, length, 64, dtype=torch.bfloat16)
        out, lse = triton_forward(q, q, q, layout, Options(0.1))
        triton_backward(out, None, q, q, q, out, lse, layout, Options(0.1))


def main() -> None:
    machine, found = Machine(), []
    for pattern, causal in PATTERNS:
        row: dict[str, Any] = {"pattern": str(pattern), "causal": causal, "differing": [], "new": []}
        for length in COMPILED_AT:
            machine.compiled, machine.launched = set(), set()
            machine.plan(pattern, causal, length)
            machine.step(pattern, causal, length)
            row["differing"] += sorted(key[0] for key in machine.compiled ^ machine.launched)
            row[f"at {length}"] = len(machine.launched)
        machine.launched = set()
        for length in LENGTHS:
            before = len(machine.launched)
            machine.step(pattern, causal, length)
            row["new"].append(len(machine.launched) - before)
        found.append(row)
    machine.launched = set()
    lists = []
    for length, width in LISTS:
        machine.by_lists(length, width)
        lists.append(len(machine.launched))
    print(json.dumps({"patterns": found, "lists": lists}))


if __name__ == "__main__":
    main()
