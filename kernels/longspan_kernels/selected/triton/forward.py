"""Selected attention's forward pass on Triton. Triton is imported here: import this file lazily."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.launch.launcher import as_contiguous, from_16_bytes, on_its_device
from longspan_kernels.selected.options import Selection
from longspan_kernels.selected.triton.call_layout import laid_out
from longspan_kernels.selected.triton.launches import launches_of, shape_of


@on_its_device
def triton_forward(q: Tensor, k: Tensor, v: Tensor, chosen: Selection) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D] and lse [B, H, T]."""
    q, k, v = laid_out(q, k, v)
    launches = launches_of(shape_of(q, k, chosen))
    lengths, segments = companions(chosen)
    picks = from_16_bytes(chosen.picks.contiguous())
    cut, parts, merges = launches.forward
    lists, items = cut(from_16_bytes(chosen.start))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    part = torch.empty(launches.cells * q.shape[3], dtype=q.dtype, device=q.device)
    part_lse = torch.empty(launches.cells, dtype=torch.float32, device=q.device)
    for attend, merge in zip(parts, merges, strict=True):
        attend(q, k, v, chosen.order, lists, items, lengths, segments, chosen.seed, part, part_lse)
        merge(part, part_lse, picks, lengths, out, lse)
    return out, lse


def companions(chosen: Selection) -> tuple[Tensor | None, Tensor | None]:
    """Lengths and segments as kernels read them."""
    lengths, segments = map(as_contiguous, (chosen.lengths, chosen.segments))
    return lengths, segments
