"""Attention to tokens that queries chose one by one, on Triton. Triton is imported here: import this file lazily.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, n picks a query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import Launch, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.lists import queries_of_blocks
from longspan_kernels.selected.triton import configs
from longspan_kernels.selected.triton.backward_kernels import row_numbers
from longspan_kernels.selected.triton.call_layout import in_units, laid_out, like_queries
from longspan_kernels.selected.triton.token_kernels import add_tokens, attend_tokens, differentiate_tokens


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
    rows = torch.empty((*lse.shape, 2), dtype=torch.float32, device=q.device)
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
        rows,
        length=T,
        tiles=tiles,
        HEADS=H,
        D=D,
        BD=width_of(D),
        BM=64,
        **strides,
    )
    numbers = _numbers(B, H, Hkv, T, D, n, scale, in_units(q), in_units(k))
    row_bytes = B * Hkv * n * D * 2 * q.dtype.itemsize
    chunk = min(T, max(16, configs.TOKEN_BYTES // row_bytes))
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    kind = torch.float32 if chunk < T else k.dtype  # several chunks add up in float32
    dk, dv = (torch.empty(k.shape, dtype=kind, device=q.device) for _ in range(2))
    part_k, part_v = (torch.empty(B * Hkv * chunk * n * D, dtype=q.dtype, device=q.device) for _ in range(2))
    tile = configs.tokens_tile(D, q.dtype.itemsize)
    for start in range(0, T, chunk):
        run_kernel(
            differentiate_tokens,
            B * Hkv * chunk,
            tile.launch,
            q,
            k,
            v,
            dout,
            rows,
            picks,
            dq,
            part_k,
            part_v,
            start=start,
            chunk=chunk,
            BN=tile.keys,
            **numbers,
        )
        here = picks[:, start : start + chunk]
        if here.shape[1] < chunk:
            here = torch.nn.functional.pad(here, (0, 0, 0, chunk - here.shape[1]), value=-1)
        order, first = queries_of_blocks(here[:, None], None, T)
        run_kernel(
            add_tokens,
            B * Hkv * T,
            Launch(1, 1),
            part_k,
            part_v,
            order,
            first,
            dk,
            dv,
            length=T,
            kv_heads=Hkv,
            chunk=chunk,
            n=n,
            D=D,
            BD=width_of(D),
            BN=16,
            ADD=start > 0,
        )
    return dq, dk.to(k.dtype), dv.to(v.dtype)
