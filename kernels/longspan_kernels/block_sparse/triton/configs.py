"""How each kernel is launched, by compute capability: what `scripts/benchmark.py --tune` prints.

For numbers of two bytes and, but for "wide" launches, tiles of 64 x 64. A capability (its major number) or key that is not here
takes the rule in tuning.py. Keys are (kernel, head width rounded up to 64 or 128, lines). Lines are "short" where a typical
line visits few tiles, "blocks" where it does and none has a mask, "bits" where some of their masks are no bands, "middle" where
it visits more, "long" where it visits many or grows with the length, "gathered" where its queries or keys are, "steps" where
its keys are, in equal steps: see `lines_of`. A "wide" launch has a tile of its own, for dense patterns. "gathered" ones are by
hand, between the best that the search found for few gathered keys and what suited many; "steps" were searched on
Fixed(128, 32), causal, T = 16384.
"""

from __future__ import annotations

from longspan_kernels.launch.launcher import Launch

Table = dict[tuple[str, int, str], Launch]

HOPPER: Table = {
    ("forward", 64, "short"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("forward", 64, "blocks"): Launch(4, 2, by_tma=True, registers=96),
    ("forward", 64, "bits"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("forward", 64, "gathered"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("forward", 64, "middle"): Launch(4, 3, one_loop=True),
    ("forward", 64, "long"): Launch(4, 2, by_tma=True),
    ("forward", 64, "steps"): Launch(4, 3, by_tma=True, registers=128),
    ("forward", 128, "short"): Launch(4, 3, one_loop=True, by_tma=True),
    ("forward", 128, "blocks"): Launch(4, 3, by_tma=True),
    ("forward", 128, "bits"): Launch(4, 2, one_loop=True, by_tma=True),
    ("forward", 128, "gathered"): Launch(4, 3, one_loop=True, by_tma=True),
    ("forward", 128, "middle"): Launch(4, 3, one_loop=True, by_tma=True),
    ("forward", 128, "long"): Launch(4, 3),
    ("forward", 128, "steps"): Launch(4, 3),
    ("backward_rows", 64, "short"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("backward_rows", 64, "blocks"): Launch(4, 3, by_tma=True, registers=168),
    ("backward_rows", 64, "bits"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("backward_rows", 64, "gathered"): Launch(4, 3, one_loop=True, by_tma=True),
    ("backward_rows", 64, "middle"): Launch(4, 3, by_tma=True, registers=168),
    ("backward_rows", 64, "long"): Launch(4, 3, by_tma=True, registers=128),
    ("backward_rows", 64, "steps"): Launch(4, 2, one_loop=True, by_tma=True, registers=128),
    ("backward_rows", 128, "short"): Launch(4, 2, by_tma=True),
    ("backward_rows", 128, "blocks"): Launch(4, 2, by_tma=True),
    ("backward_rows", 128, "bits"): Launch(4, 2, one_loop=True, by_tma=True),
    ("backward_rows", 128, "gathered"): Launch(4, 2, one_loop=True, by_tma=True),
    ("backward_rows", 128, "middle"): Launch(4, 2, one_loop=True, by_tma=True),
    ("backward_rows", 128, "long"): Launch(4, 2, by_tma=True),
    ("backward_rows", 128, "steps"): Launch(4, 2, one_loop=True, by_tma=True),
    ("backward_columns", 64, "short"): Launch(4, 2, one_loop=True, by_tma=True, registers=168, in_sums=True),
    ("backward_columns", 64, "blocks"): Launch(4, 3, by_tma=True, registers=168, in_sums=True),
    ("backward_columns", 64, "bits"): Launch(4, 2, one_loop=True, by_tma=True, registers=168, in_sums=True),
    ("backward_columns", 64, "gathered"): Launch(4, 3, by_tma=True, registers=168, serial_masks=True, in_sums=True),
    ("backward_columns", 64, "middle"): Launch(4, 3, by_tma=True, registers=168, serial_masks=True, in_sums=True),
    ("backward_columns", 64, "long"): Launch(4, 3, by_tma=True, registers=168, serial_masks=True, in_sums=True),
    ("backward_columns", 64, "steps"): Launch(4, 3, by_tma=True, registers=168, serial_masks=True, in_sums=True),
    ("backward_columns", 128, "short"): Launch(4, 2, one_loop=True, by_tma=True, in_sums=True),
    ("backward_columns", 128, "blocks"): Launch(4, 2, by_tma=True),
    ("backward_columns", 128, "bits"): Launch(4, 2, one_loop=True, by_tma=True, in_sums=True),
    ("backward_columns", 128, "gathered"): Launch(4, 2, by_tma=True, serial_masks=True),
    ("backward_columns", 128, "middle"): Launch(4, 2, by_tma=True),
    ("backward_columns", 128, "long"): Launch(4, 2, by_tma=True, serial_masks=True),
    ("backward_columns", 128, "steps"): Launch(4, 2, by_tma=True, serial_masks=True),
    ("backward_rows", 128, "wide"): Launch(8, 3, by_tma=True, tile=(128, 64)),
}

TABLES: dict[int, Table] = {9: HOPPER}
