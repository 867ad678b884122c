"""Masks of partial tiles: finds equal ones, recognises bands, and packs 32 pairs into a word."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.block_sparse.grid import hash_rows

EVALUATED_AT_ONCE = 1 << 24  # pairs


def distinct_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """[n, a, b] bool -> the distinct ones, and the index of each mask among them."""
    state = hash_rows(pack_bits(masks).flatten(1).long())
    distinct, inverse = torch.unique(state, return_inverse=True)
    first = torch.empty_like(distinct).scatter_(0, inverse, torch.arange(len(masks), device=masks.device))
    return masks[first], inverse


def find_bands(masks: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many masks are bands in place offsets, [M, 4] int32 bounds, and an order that puts the bands first."""
    a, b = masks.shape[1:]
    device = masks.device
    m, n = torch.arange(a, device=device)[:, None], torch.arange(b, device=device)[None, :]
    distance = m - n
    bounds, flags = [], []
    for chunk in masks.split(max(1, EVALUATED_AT_ONCE // (a * b))):
        lo = torch.where(chunk, distance, a + b).amin((1, 2))
        hi = torch.where(chunk, distance, -(a + b)).amax((1, 2))
        last_m = torch.where(chunk, m, 0).amax((1, 2))
        last_n = torch.where(chunk, n, 0).amax((1, 2))
        bound = torch.stack([lo, hi, last_m, last_n], 1)
        lo, hi, last_m, last_n = bound[:, :, None, None].unbind(1)
        band = (distance >= lo) & (distance <= hi) & (m <= last_m) & (n <= last_n)
        flags.append((band == chunk).all(2).all(1))
        bounds.append(bound.int())
    flag = torch.cat(flags)
    return int(flag.sum()), torch.cat(bounds), torch.argsort((~flag).int(), stable=True)


def pack_bits(masks: Tensor) -> Tensor:
    """[n, a, b] bool -> [n, a, ceil(b / 32)] int32, bit n % 32 of word n // 32."""
    n, a, b = masks.shape
    words = -(-b // 32)
    padded = torch.nn.functional.pad(masks, (0, words * 32 - b)) if words * 32 != b else masks
    device = masks.device
    weight = torch.ones(32, dtype=torch.int64, device=device) << torch.arange(32, device=device)
    out = torch.empty((n, a, words), dtype=torch.int32, device=device)
    step = max(1, EVALUATED_AT_ONCE // (a * words * 32))
    for begin in range(0, n, step):
        part = padded[begin : begin + step].view(-1, a, words, 32).long()
        value = (part * weight).sum(-1)
        out[begin : begin + step] = torch.where(value >= 1 << 31, value - (1 << 32), value).int()
    return out
