"""The Triton kernel of index scores: heads are summed in registers. Triton is imported here: import this file lazily.

Legend: J heads, E their width, BE it rounded up to a power of two, BM x BN a tile of queries x keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import Launch, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton.common import of_row, rows_at


@triton.jit(do_not_specialize=["rows", "keys", "tiles"])
def index_scores(
    Q,
    K,
    W,
    OUT,
    rows: tl.int32,
    keys: tl.int32,
    tiles: tl.int32,
    J: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """OUT [rows, keys] from Q [J, rows, E], K [keys, E] and W [J, rows]."""
    pid = tl.program_id(0)
    row = pid % tiles * BM + tl.arange(0, BM)
    key = pid // tiles * BN + tl.arange(0, BN)
    k = tl.trans(rows_at(K, of_row(key, E), key < keys, E, BE))
    total = tl.zeros([BM, BN], tl.float32)
    for _ in tl.range(0, J):
        q = rows_at(Q, of_row(row, E), row < rows, E, BE)
        weight = tl.load(W + row, mask=row < rows, other=0.0).to(tl.float32)
        total += tl.maximum(tl.dot(q, k, input_precision="ieee"), 0.0) * weight[:, None]
        Q += rows * E
        W += rows
    place = OUT + row.to(tl.int64)[:, None] * keys + key[None, :]
    tl.store(place, total, mask=(row < rows)[:, None] & (key < keys)[None, :])


@triton.jit(do_not_specialize=["keys", "width", "out_row"])
def compact_best(SCORES, LEAST, EQUALS, OUT, keys: tl.int32, width: tl.int32, out_row: tl.int64, BN: tl.constexpr):
    """Columns of a row of SCORES [rows, keys] above LEAST, and the first EQUALS that equal it, to its row of OUT."""
    row = tl.program_id(0)
    least = tl.load(LEAST + row)
    wanted = tl.load(EQUALS + row)
    scores = SCORES + row.to(tl.int64) * keys
    out = OUT + row.to(tl.int64) * out_row
    taken_before = 0
    equal_before = 0
    for start in tl.range(0, keys, BN):
        column = start + tl.arange(0, BN)
        s = tl.load(scores + column, mask=column < keys, other=float("-inf"))
        equal = ((s == least) & (s > float("-inf"))).to(tl.int32)
        among = (equal > 0) & (equal_before + tl.cumsum(equal, 0) <= wanted)
        taken = ((s > least) | among).to(tl.int32)
        place = taken_before + tl.cumsum(taken, 0) - 1
        tl.store(out + place, column, mask=(taken > 0) & (place < width))
        taken_before += tl.sum(taken, 0)
        equal_before += tl.sum(equal, 0)


@on_its_device
def triton_compact(scores: Tensor, least: Tensor, equals: Tensor, out: Tensor) -> None:
    """As `index._compact`; out holds -1."""
    rows, keys = scores.shape
    numbers = {"keys": keys, "width": out.shape[1], "out_row": out.stride(0), "BN": 1024}
    aligned = out if out.data_ptr() % 16 == 0 else out.clone()
    tensors = (scores, from_16_bytes(least), from_16_bytes(equals), aligned)
    run_kernel(compact_best, rows, Launch(4, 1), *tensors, **numbers)
    if aligned is not out:
        out.copy_(aligned)


@on_its_device
def triton_index_scores(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """[C, S] float32 of queries [J, C, E], keys [S, E] and weights [J, C]."""
    if interprets_bfloat16(queries):
        queries, keys = queries.float(), keys.float()
    queries, keys, weights = (from_16_bytes(x.contiguous()) for x in (queries, keys, weights))
    (J, C, E), S = queries.shape, keys.shape[0]
    out = torch.empty((C, S), dtype=torch.float32, device=queries.device)
    side = 128 if queries.dtype.itemsize == 2 and E <= 128 else 32
    tiles = -(-C // side)
    numbers = {"rows": C, "keys": S, "tiles": tiles, "J": J, "E": E, "BE": width_of(E), "BM": side, "BN": side}
    launch = Launch(8 if side > 32 else 4, 2)
    run_kernel(index_scores, tiles * -(-S // side), launch, queries, keys, weights, out, **numbers)
    return out
