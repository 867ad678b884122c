"""Selected attention's backward pass on Triton. Triton is imported here: import this file lazily."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan_kernels.launch.launcher import as_contiguous, from_16_bytes, on_its_device
from longspan_kernels.selected.options import Selection
from longspan_kernels.selected.triton.call_layout import laid_out, like_queries
from longspan_kernels.selected.triton.forward import companions
from longspan_kernels.selected.triton.launches import launches_of, shape_of


@on_its_device
def triton_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, chosen: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; every sum has one order."""
    q, k, v = laid_out(q, k, v)
    dout = like_queries(dout, q)
    launches = launches_of(shape_of(q, k, chosen))
    lengths, segments = companions(chosen)
    picks = from_16_bytes(chosen.picks.contiguous())
    rows = torch.empty((*lse.shape, 2), dtype=torch.float32, device=q.device)
    dlse = as_contiguous(dlse)
    launches.numbers_of_rows[dlse is not None](out, dout, lse, dlse, rows)

    start = from_16_bytes(chosen.start)
    cut, columns, sums = launches.keys
    lists, items = cut(start)
    queries = launches.queries
    if queries is not None:
        row_lists, row_items = queries[0](start)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    # Launches that add to what others wrote do it in float32.
    kind = torch.float32 if launches.several else k.dtype
    dk, dv = (torch.empty(k.shape, dtype=kind, device=q.device) for _ in range(2))
    partials = torch.empty(max(4, launches.partial_numbers()), dtype=torch.float32, device=q.device)
    part = torch.empty(launches.cells * q.shape[3], dtype=q.dtype, device=q.device)
    for number, (column, add, merge) in enumerate(zip(columns, sums, launches.merges_of_gradients, strict=True)):
        column(q, k, v, dout, rows, chosen.order, lists, items, lengths, segments, chosen.seed, part, dk, dv, partials)
        add(lists, partials, dk, dv)
        if queries is not None:
            queries[1][number](q, k, v, dout, rows, chosen.order, row_lists, row_items, lengths, segments, chosen.seed, part)
        merge(part, None, picks, lengths, dq, None)
    return dq, dk.to(k.dtype), dv.to(k.dtype)
