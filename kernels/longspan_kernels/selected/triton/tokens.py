"""Attention to tokens that queries chose one by one, on Triton. Triton is imported here: import this file lazily.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, n picks a query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import Launch, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton import configs
from longspan_kernels.selected.triton.backward_kernels import row_numbers
from longspan_kernels.selected.triton.call_layout import in_units, laid_out, like_queries
from longspan_kernels.selected.triton.token_kernels import add_tokens, attend_tokens, differentiate_tokens
from longspan_kernels.selected.triton.token_lists import count_picks, mark_picks, place_words


@remembered(256)
def _numbers(batch, heads, kv_heads, length, width, picks, scale, q_strides, kv_strides) -> dict:
    """The numbers that kernels over queries take."""
    group = heads // kv_heads
    return {
        "q_b": q_strides[0],
        "q_h": q_strides[1],
        "q_t": q_strides[2],
        "kv_b": kv_strides[0],
        "kv_h": kv_strides[1],
        "kv_t": kv_strides[2],
        "length": length,
        "kv_heads": kv_heads,
        "scale": scale,
        "n": picks,
        "G": group,
        "BG": max(16, 1 << (group - 1).bit_length()),
        "D": width,
        "BD": width_of(width),
    }


@on_its_device
def triton_tokens_forward(q: Tensor, k: Tensor, v: Tensor, picks: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D] and lse [B, H, T]."""
    if interprets_bfloat16(q):
        out, lse = triton_tokens_forward(q.float(), k.float(), v.float(), picks, scale)
        return out.to(q.dtype), lse
    q, k, v = laid_out(q, k, v)
    (B, H, T, D), Hkv = q.shape, k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    numbers = _numbers(B, H, Hkv, T, D, picks.shape[2], scale, in_units(q), in_units(k))
    tile = configs.tokens_tile(D, q.dtype.itemsize)
    picks = from_16_bytes(picks.contiguous())
    run_kernel(attend_tokens, B * Hkv * T, tile.launch, q, k, v, picks, out, lse, BN=tile.keys, **numbers)
    return out, lse


@on_its_device
def triton_tokens_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, picks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv."""
    if interprets_bfloat16(q):
        grads = triton_tokens_backward(dout.float(), q.float(), k.float(), v.float(), out.float(), lse, picks, scale)
        return grads[0].to(q.dtype), grads[1].to(q.dtype), grads[2].to(q.dtype)
    q, k, v = laid_out(q, k, v)
    dout = like_queries(dout, q)
    (B, H, T, D), Hkv, n = q.shape, k.shape[1], picks.shape[2]
    picks = from_16_bytes(picks.contiguous())
    row_pairs = torch.empty((*lse.shape, 2), dtype=torch.float32, device=q.device)
    tiles = -(-T // 64)
    strides = dict(zip(("do_b", "do_h", "do_t"), in_units(q), strict=True))
    run_kernel(
        row_numbers,
        tiles * B * H,
        configs.MERGE,
        out,
        dout,
        lse,
        None,
        row_pairs,
        length=T,
        tiles=tiles,
        HEADS=H,
        D=D,
        BD=width_of(D),
        BM=64,
        **strides,
    )
    numbers = _numbers(B, H, Hkv, T, D, n, scale, in_units(q), in_units(k))
    chunk, together = _chunks(B, Hkv, T, D, n, q.dtype.itemsize)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    kind = torch.float32 if chunk < T else k.dtype  # several chunks add up in float32
    dk, dv = (torch.empty(k.shape, dtype=kind, device=q.device) for _ in range(2))
    parts = torch.empty(Hkv * B * chunk * n * 2 * D, dtype=q.dtype, device=q.device)
    tile = configs.token_gradients_tile(D, q.dtype.itemsize)
    words = chunk // 32
    for begin in range(0, T, together * chunk):
        rows = min(T - begin, together * chunk)
        table, ends = lists_of(picks, begin, rows, chunk)
        for number in range(-(-rows // chunk)):
            start = begin + number * chunk
            run_kernel(
                differentiate_tokens,
                B * Hkv * chunk,
                tile.launch,
                q,
                k,
                v,
                dout,
                row_pairs,
                picks,
                table,
                dq,
                parts,
                start=start,
                chunk=chunk,
                first_word=number * words,
                lists=B * T,
                BN=tile.keys,
                **numbers,
            )
            run_kernel(
                add_tokens,
                B * Hkv * T,
                Launch(1, 1),
                parts,
                ends,
                dk,
                dv,
                lists=B * T,
                length=T,
                kv_heads=Hkv,
                parts=B * chunk * n,
                chunk_number=number,
                D=D,
                BD=width_of(D),
                BN=16,
                ADD=start > 0,
            )
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _chunks(batch: int, kv_heads: int, length: int, width: int, picks: int, itemsize: int) -> tuple[int, int]:
    """(queries whose gradients of keys and values are in memory at a time, chunks of them whose lists are made together)."""
    most = min(
        configs.TOKEN_BYTES // (batch * kv_heads * picks * width * 2 * itemsize),
        4 * configs.TOKEN_LIST_BYTES // batch // length,
    )
    chunk = 32 * max(1, min(most, length + 31) // 32)
    return chunk, max(1, 4 * configs.TOKEN_LIST_BYTES // batch // length // chunk)


def lists_of(picks: Tensor, begin: int, rows: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The table and the ends of the lists (see `token_lists`) of `rows` queries from `begin` on."""
    B, T, n = picks.shape
    lists, chunks, words = B * T, -(-rows // chunk), chunk // 32
    table = torch.zeros((chunks * words, lists), dtype=torch.int64, device=picks.device)
    block = min(1024, 1 << (n - 1).bit_length())
    run_kernel(
        mark_picks, B * rows, configs.MERGE, picks, table, length=T, start=begin, rows=rows, lists=lists, n=n, BN=max(16, block)
    )
    counts = torch.empty((chunks, lists), dtype=torch.int32, device=picks.device)
    numbers = {"lists": lists, "words": words, "BW": 64, "BL": 32}
    programs = chunks * -(-lists // 32)
    run_kernel(count_picks, programs, configs.MERGE, table, counts, **numbers)
    ends = counts.cumsum(1, dtype=torch.int32)
    run_kernel(place_words, programs, configs.MERGE, table, ends, **numbers)
    return table, ends
