"""Launches of bucketed attention's kernels, both passes. Triton is imported here: import this file lazily.

Legend: B batch, H heads, R rounds, T tokens, D head width, N = B H R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan_kernels.bucketed.options import Buckets
from longspan_kernels.bucketed.tables import rounds_padded
from longspan_kernels.bucketed.triton.backward_kernels import add_rounds, differentiate_buckets
from longspan_kernels.bucketed.triton.common import Constants
from longspan_kernels.bucketed.triton.forward_kernels import attend_buckets, merge_rounds
from longspan_kernels.launch.launcher import Launch, as_contiguous, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton.backward_kernels import row_numbers
from longspan_kernels.selected.triton.call_layout import by_rows, in_units

SMALL = Launch(4, 1)
MERGED_ROWS = 32  # tokens of a program that adds rounds up
NUMBERED_ROWS = 64  # of one that makes the numbers of rows


def _launch(width: int, itemsize: int, forward: bool) -> Launch:
    """The backward kernel is slower with fewer registers than it asks for, the forward one 12 % quicker: three programs fit."""
    if width > 64 and itemsize == 2:
        return Launch(8, 1)
    return Launch(4, 1, registers=168 if forward and itemsize == 2 else None)


def _strides(name: str, x: Tensor) -> dict[str, int]:
    return dict(zip((f"{name}_b", f"{name}_h", f"{name}_t"), in_units(x), strict=True))


def _of_tiles(q: Tensor, v: Tensor, tiles: Tensor, how: Buckets, scale: float, dropout_p: float) -> dict[str, Any]:
    """The numbers that the kernels over tiles of buckets share."""
    D = q.shape[3]
    constants = Constants(
        R=how.rounds,
        RP=rounds_padded(how.rounds),
        SIZE=how.size,
        BM=how.tile,
        ALIGNED=how.aligned,
        CAUSAL=how.causal,
        ITSELF=how.itself,
        UNIT_KEYS=how.unit_keys,
        UNIT_QUERIES=how.unit_queries,
        DIRECT=how.direct,
        D=D,
        BD=width_of(D),
    )
    sizes = {"length": q.shape[2], "tiles": tiles.shape[1], "heads": q.shape[1], "threshold": int(dropout_p * (1 << 24))}
    return _strides("q", q) | _strides("v", v) | sizes | {"scale": scale, "C": constants}


@on_its_device
def triton_forward(
    q: Tensor,
    v: Tensor,
    order: Tensor,
    tiles: Tensor,
    numbers: Tensor,
    lengths: Tensor | None,
    seed: Tensor | None,
    how: Buckets,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D] and lse [B, H, T]."""
    (B, H, T, D), N = q.shape, order.shape[0]
    q, v = by_rows(q), by_rows(v)
    lengths = as_contiguous(lengths)
    of_tiles = _of_tiles(q, v, tiles, how, scale, dropout_p)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    if how.direct:
        part, part_lse = out, lse
        if lengths is not None:  # no program comes to what lies beyond
            out.zero_()
            lse.fill_(float("-inf"))
    else:
        part = torch.empty((N, T, D), dtype=q.dtype, device=q.device)
        part_lse = torch.empty((N, T), dtype=torch.float32, device=q.device)
    tensors = q, v, order, tiles, numbers, seed, part, part_lse
    run_kernel(attend_buckets, N * tiles.shape[1], _launch(D, q.element_size(), True), *tensors, **of_tiles)
    if how.direct:
        return out, lse
    rows = -(-T // MERGED_ROWS)
    run_kernel(
        merge_rounds,
        B * H * rows,
        SMALL,
        *(part, part_lse, v, lengths, out, lse),
        **_strides("v", v),
        length=T,
        tiles=rows,
        heads=H,
        R=how.rounds,
        BR=max(2, 1 << (how.rounds - 1).bit_length()),
        D=D,
        BD=width_of(D),
        BM=MERGED_ROWS,
    )
    return out, lse


@on_its_device
def triton_backward(
    dout: Tensor,
    q: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    order: Tensor,
    tiles: Tensor,
    numbers: Tensor,
    lengths: Tensor | None,
    seed: Tensor | None,
    how: Buckets,
    scale: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """dq, of queries and of keys, and dv."""
    (B, H, T, D), N = q.shape, order.shape[0]
    q, v, dout = by_rows(q), by_rows(v), by_rows(dout)
    lengths = as_contiguous(lengths)
    of_tiles = _of_tiles(q, v, tiles, how, scale, dropout_p)
    of_dout, sizes = _strides("do", dout), {"D": D, "BD": width_of(D)}
    rows = torch.empty((B, H, T, 2), dtype=torch.float32, device=q.device)
    count = -(-T // NUMBERED_ROWS)
    numbered = {"length": T, "tiles": count, "HEADS": H, **sizes, "BM": NUMBERED_ROWS}
    run_kernel(row_numbers, B * H * count, SMALL, out, dout, lse, None, rows, **of_dout, **numbered)
    dq, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(2))
    if how.direct:
        part_q, part_v = dq, dv
        if lengths is not None:
            dq.zero_(), dv.zero_()
    else:
        part_q, part_v = (torch.empty((N, T, D), dtype=q.dtype, device=q.device) for _ in range(2))
    tensors = q, v, dout, rows, order, tiles, numbers, seed, part_q, part_v
    run_kernel(differentiate_buckets, N * tiles.shape[1], _launch(D, q.element_size(), False), *tensors, **of_dout, **of_tiles)
    if how.direct:
        return dq, dv
    count = -(-T // MERGED_ROWS)
    added = {"length": T, "tiles": count, "heads": H, "R": how.rounds, **sizes, "BM": MERGED_ROWS}
    run_kernel(add_rounds, B * H * count, SMALL, part_q, part_v, dout, lse, lengths, dq, dv, **of_dout, **added)
    return dq, dv
