"""The Triton kernel that chooses blocks by the weights of native sparse attention's compressed branch. Triton is imported here:
import this file lazily.

Legend: BM x BN a tile of queries x blocks, BD the head width D rounded up to a power of two, G heads a group, N picks beside a
query's own block, SIZE tokens a block, STRIDES of compressed keys a block, SPAN strides a compressed key.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.launcher import as_contiguous, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton import configs
from longspan_kernels.selected.triton.call_layout import by_rows, in_units
from longspan_kernels.selected.triton.choose_kernels import none_yet, with_chunk
from longspan_kernels.selected.triton.common import LOG2E, elements, of_row, rows_at, tokens_of

VARYING = ["q_b", "q_h", "q_t", "length", "compressed", "tiles", "kv_heads"]


@triton.jit(do_not_specialize=VARYING)
def choose_by_importance(
    Q,
    KEYS,
    LSE,
    LENGTHS,
    OUT,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    length: tl.int32,
    compressed: tl.int32,
    tiles: tl.int32,
    kv_heads: tl.int32,
    scale,
    G: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    SPAN: tl.constexpr,
    STRIDES: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """OUT [B, Hkv, T, 1 + N]: the own block, then the best others; blocks pass in chunks, and scores stay in registers."""
    pid = tl.program_id(0)
    # The last rows see most blocks under CAUSAL: they go first.
    tile = tiles - 1 - pid % tiles
    list_row = pid // tiles
    b = list_row // kv_heads
    group = list_row % kv_heads
    row = tile * BM + tl.arange(0, BM)
    tokens = tokens_of(LENGTHS, b, length)
    exists = row < tokens
    own = row // SIZE
    end = (tokens + SIZE - 1) // SIZE
    stride: tl.constexpr = SIZE // STRIDES
    # The last compressed key that ends at or before a token.
    last_seen = (row + 1) // stride - SPAN
    if CAUSAL:
        end = tl.minimum(end, (tl.minimum(tile * BM + BM, tokens) - 1) // SIZE)
    else:
        last_seen = row * 0 + tokens // stride - SPAN
    end = tl.where(tile * BM < tokens, end, 0)
    Q += elements(b.to(tl.int64) * q_b + (group * G).to(tl.int64) * q_h, D)
    KEYS += list_row.to(tl.int64) * compressed * D
    LSE += (b * kv_heads * G + group * G).to(tl.int64) * length
    values, numbers = none_yet(BM, N)
    scale2 = scale * LOG2E
    for start in tl.range(0, end, BN):
        number = start + tl.arange(0, BN)
        # The weight that the heads of a group give each block through the compressed keys that overlap it.
        importance = tl.zeros([BM, BN], tl.float32)
        Q_OF, LSE_OF = Q, LSE
        for _ in tl.range(0, G):
            q = rows_at(Q_OF, row.to(tl.int64) * q_t, exists, D, BD)
            lse = tl.load(LSE_OF + row, mask=exists, other=float("inf"))
            lse2 = tl.where(lse == float("-inf"), float("inf"), lse) * LOG2E
            for shift in tl.static_range(1 - SPAN, STRIDES):
                # Compressed keys that begin `shift` strides after the block, by how many strides of the block each covers.
                key = number * STRIDES + shift
                there = (key >= 0) & (key < compressed)
                keys = rows_at(KEYS, of_row(key, D), there, D, BD)
                s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale2 - lse2[:, None]
                seen = there[None, :] & (key[None, :] <= last_seen[:, None])
                importance += tl.where(seen, tl.exp2(s), 0.0) * (
                    (shift + SPAN if shift + SPAN < STRIDES else STRIDES) - (shift if shift > 0 else 0)
                )
            Q_OF += elements(q_h, D)
            LSE_OF += length
        importance = tl.where((number[None, :] == own[:, None] - 1) | (number == 0)[None, :], 3.4e38, importance)
        may = (number < end)[None, :]
        if CAUSAL:  # `end` is no earlier than the own block
            may = may & (number[None, :] < own[:, None])
        if not CAUSAL:
            may = may & (number[None, :] != own[:, None])
        values, numbers = with_chunk(tl.where(may, importance, float("-inf")), number, values, numbers, N)
    at = OUT + (list_row.to(tl.int64) * length + row) * (N + 1)
    tl.store(at, tl.where(exists, own, -1), mask=row < length)
    for n in tl.static_range(N):
        tl.store(at + n + 1, tl.where(exists, numbers[n], -1), mask=row < length)


@on_its_device
def triton_choose_important(
    q: Tensor,
    keys: Tensor,
    lse: Tensor,
    lengths: Tensor | None,
    picks: int,
    block_size: int,
    compressed_block: int,
    stride: int,
    causal: bool,
) -> Tensor:
    """As `importance.choose_important_blocks`."""
    if interprets_bfloat16(q):
        q, keys = q.float(), keys.float()
    (B, H, T, D), (_, Hkv, nc, _) = q.shape, keys.shape
    q = by_rows(q)
    q_b, q_h, q_t = in_units(q)
    keys, lse = from_16_bytes(keys.contiguous()), from_16_bytes(lse.contiguous())
    lengths = as_contiguous(lengths)
    out = torch.empty((B, Hkv, T, picks), dtype=torch.int32, device=q.device)
    tile = configs.importance_tile(D, q.dtype.itemsize, H // Hkv)
    tiles = -(-T // tile.rows)
    strides = {"q_b": q_b, "q_h": q_h, "q_t": q_t}
    sizes = {"length": T, "compressed": nc, "tiles": tiles, "kv_heads": Hkv, "scale": D**-0.5}
    constants = {"G": H // Hkv, "D": D, "BD": width_of(D), "BM": tile.rows, "BN": tile.keys, "N": picks - 1}
    spans = {"SIZE": block_size, "SPAN": compressed_block // stride, "STRIDES": block_size // stride, "CAUSAL": causal}
    numbers = {**strides, **sizes, **constants, **spans}
    run_kernel(choose_by_importance, tiles * B * Hkv, tile.launch, q, keys, lse, lengths, out, **numbers)
    return out
