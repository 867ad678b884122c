"""The forward pass in Triton: one launch a component, plus a merge of cut rows where a component has any.

Triton is imported here: import this file lazily. The kernels are in forward_kernels.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import Call, alignment, launch, output_like
from .forward_kernels import forward_rows, merge_pieces
from .layout import Component, Layout
from .schedule import work_of
from .tuning import launch_of


def triton_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float,
    q_lengths: Tensor | None = None, k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None, k_segments: Tensor | None = None,
    dropout_p: float = 0.0, seed: Tensor | None = None, bias: Tensor | None = None, bias_block: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over the tiles of a layout.

    Args:
        q: [B, H, Tq, D]; k, v: [B, Hkv, Tk, D]; float16, bfloat16 or float32, any strides.
        scale: factor of the scores.
        q_lengths, k_lengths: [B] int32; tokens at or past it do not exist.
        q_segments: [B, Tq], k_segments: [B, Tk]; a pair also needs equal segments.
        seed: int64 scalar on the device, for dropout of the weights (the normaliser is undropped).
        bias: [H or 1, query blocks, key blocks] float32, added to scaled scores.

    Returns:
        out [B, H, Tq, D] in q's dtype and lse [B, H, Tq] float32, natural log; 0 and -inf for a query without keys.

    Raises:
        UnsupportedCall: a dtype, width or bias that this backend does not serve.
    """
    call = Call(q, k, v, layout, scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, bias, bias_block)
    out = output_like(call.q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if not layout.covered:
        out.zero_()
        lse.fill_(float("-inf"))
    for number, component in enumerate(layout.components):
        _component(call, component, out, lse, merging=number > 0 or not layout.covered)
    return out, lse


def _component(call: Call, component: Component, out: Tensor, lse: Tensor, merging: bool) -> None:
    q, lists = call.q, component.rows
    B, H, Tq, _ = q.shape
    work = work_of(component, "rows", 1, B, everything=call.layout.covered and component.covers)
    numbers = call.numbers(component)
    o_b, o_h, o_t, _ = out.stride()
    BM, BD = numbers["BM"], numbers["BD"]
    part = part_lse = None
    if work.slots:
        part = torch.empty((work.slots * B, BM, BD), dtype=torch.float32, device=q.device)
        part_lse = torch.empty((work.slots * B, BM), dtype=torch.float32, device=q.device)
    warps, stages = launch_of("forward", q, component)
    launch(
        forward_rows, work.programs * B,
        (q, call.k, call.v, out, lse, *call.pattern(component, "rows"), component.merge, work.items, part, part_lse,
         *call.limits()),
        numbers | {
            "o_b": o_b, "o_h": o_h, "o_t": o_t, "lines": lists.start.shape[1], "owners": H,
            "CONTIGUOUS": lists.contiguous, "DROPOUT": call.seed is not None, "MERGE": merging,
            "ALIGN": alignment(q.shape[3], q, call.k, call.v),
        },
        warps, stages,
    )  # fmt: skip
    if work.splits is not None:
        launch(
            merge_pieces, len(work.splits) * B,
            (out, lse, part, part_lse, work.splits, component.group, component.merge, component.q_index),
            {
                "o_b": o_b, "o_h": o_h, "o_t": o_t, "q_index_stride": numbers["q_index_stride"], "q_len": Tq,
                "q_start": component.q_start, "batch": B, "owners": H, "batch_groups": component.batch_groups,
                "D": numbers["D"], "BD": BD, "BM": BM, "MERGE": merging,
            },
            4, 1,
        )  # fmt: skip
