"""The backward pass in Triton: for each component one launch over rows (dq) and one over columns (dk, dv).

Every sum has one order: gradients of components add up in the order of the components, pieces of a cut line in theirs, heads
that share a key head in theirs. Triton is imported here: import this file lazily. The kernels are in backward_kernels.py.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .arguments import Call, alignment, launch, output_like, rows_of_unit_stride, width_of
from .backward_kernels import add_pieces, backward_columns, backward_rows, prepare_rows
from .layout import Component, Layout
from .schedule import work_of
from .tuning import launch_of

PREPARED_AT_ONCE = 64  # rows a program


def triton_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, layout: Layout, *,
    scale: float, q_lengths: Tensor | None = None, k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None, k_segments: Tensor | None = None,
    dropout_p: float = 0.0, seed: Tensor | None = None, bias: Tensor | None = None, bias_block: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of `triton_forward`, whose arguments and results these are; dout [B, H, Tq, D], dlse [B, H, Tq] or None.

    Returns:
        dq, dk, dv in the dtype of q, and dbias float32 in the shape of the bias (None without one). The same bits each run.
    """
    call = Call(q, k, v, layout, scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, bias, bias_block)
    dout, out = rows_of_unit_stride(dout), rows_of_unit_stride(out)
    lse2, delta = _prepare(call, dout, dlse, out, lse)
    dq = output_like(call.q)
    if not layout.covered:
        dq.zero_()
    dk, dv = output_like(call.k), output_like(call.v)
    if not layout.components or not _covers_keys(layout.components[0]):
        dk.zero_()
        dv.zero_()
    sums = _BiasSums.empty(call) if bias is not None else None
    for number, component in enumerate(layout.components):
        merging = number > 0 or not layout.covered
        _queries(call, component, dout, lse2, delta, dq, sums, merging)
        _keys(call, component, dout, lse2, delta, dk, dv, adding=number > 0 or not _covers_keys(component))
    if call.negate:
        dq.neg_()
    return dq, dk, dv, None if sums is None or call.bias is None else sums.reduced(call.bias)


def _covers_keys(component: Component) -> bool:
    """Whether every key has a place in this order, so that a first component writes all of dk and dv."""
    return component.k_index is None or component.order.startswith("residue")


def _prepare(call: Call, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    B, H, Tq, D = out.shape
    lse2, delta = torch.empty_like(lse), torch.empty_like(lse)
    (o_b, o_h, o_t, _), (do_b, do_h, do_t, _) = out.stride(), dout.stride()
    lines = -(-Tq // PREPARED_AT_ONCE)
    launch(
        prepare_rows, lines * B * H,
        (out, dout, lse, None if dlse is None else dlse.float().contiguous(), lse2, delta),
        {
            "o_b": o_b, "o_h": o_h, "o_t": o_t, "do_b": do_b, "do_h": do_h, "do_t": do_t, "q_len": Tq, "owners": H,
            "lines": lines, "D": D, "BD": width_of(D), "BM": PREPARED_AT_ONCE,
        },
        4, 1,
    )  # fmt: skip
    return lse2, delta


def _queries(
    call: Call, component: Component, dout: Tensor, lse2: Tensor, delta: Tensor, dq: Tensor, sums: _BiasSums | None,
    merging: bool,
) -> None:  # fmt: skip
    q, lists = call.q, component.rows
    B, H, Tq, _ = q.shape
    work = work_of(component, "rows", 1, B, everything=call.layout.covered and component.covers)
    numbers = call.numbers(component)
    (do_b, do_h, do_t, _), (dq_b, dq_h, dq_t, _) = dout.stride(), dq.stride()
    BM, BD = numbers["BM"], numbers["BD"]
    part = torch.empty((work.slots * B, BM, BD), dtype=torch.float32, device=q.device) if work.slots else None
    warps, stages = launch_of("backward_rows", q, component)
    launch(
        backward_rows, work.programs * B,
        (q, call.k, call.v, dout, lse2, delta, dq, *call.pattern(component, "rows"), component.merge, work.items, part,
         *call.limits(), None if sums is None else sums.tiles),
        numbers | {
            "do_b": do_b, "do_h": do_h, "do_t": do_t, "dq_b": dq_b, "dq_h": dq_h, "dq_t": dq_t,
            "sums_h": 0 if sums is None else sums.tiles.stride(1), "sums_row": 0 if sums is None else sums.tiles.stride(2),
            "sums_first": 0 if sums is None else sums.first, "lines": lists.start.shape[1], "owners": H,
            "scale": call.scale, "CONTIGUOUS": lists.contiguous, "DROPOUT": call.seed is not None, "MERGE": merging,
            "ALIGN": alignment(q.shape[3], q, call.k, call.v, dout),
        },
        warps, stages,
    )  # fmt: skip
    if work.splits is not None:
        launch(
            add_pieces, len(work.splits) * B, (dq, part, work.splits, component.group, component.merge, component.q_index),
            {
                "x_b": dq_b, "x_h": dq_h, "x_t": dq_t, "index_stride": numbers["q_index_stride"], "x_len": Tq,
                "x_start": component.q_start, "batch": B, "batch_groups": component.batch_groups,
                "D": numbers["D"], "BD": BD, "BX": BM, "SHARE": 1, "MERGE": merging,
            },
            4, 1,
        )  # fmt: skip


def _keys(
    call: Call, component: Component, dout: Tensor, lse2: Tensor, delta: Tensor, dk: Tensor, dv: Tensor, adding: bool
) -> None:
    q, k, lists = call.q, call.k, component.columns
    B, Hkv, Tk, _ = k.shape
    if component.k_index is not None and component.k_index.dim() == 2 and call.share > 1:
        # Heads that share keys may each have an order of their own: a gradient for each, added up afterwards.
        _keys_of_each_head(call, component, dout, lse2, delta, dk, dv)
        return
    work = work_of(component, "columns", call.share, B, everything=not adding)
    numbers = call.numbers(component)
    (do_b, do_h, do_t, _), (dk_b, dk_h, dk_t, _), (dv_b, dv_h, dv_t, _) = dout.stride(), dk.stride(), dv.stride()
    BN, BD = numbers["BN"], numbers["BD"]
    part_k = part_v = None
    if work.slots:
        part_k = torch.empty((work.slots * B, BN, BD), dtype=torch.float32, device=q.device)
        part_v = torch.empty_like(part_k)
    warps, stages = launch_of("backward_columns", q, component)
    launch(
        backward_columns, work.programs * B,
        (q, k, call.v, dout, lse2, delta, dk, dv, *call.pattern(component, "columns"), work.items, part_k, part_v,
         *call.limits()),
        numbers | {
            "do_b": do_b, "do_h": do_h, "do_t": do_t, "dk_b": dk_b, "dk_h": dk_h, "dk_t": dk_t,
            "dv_b": dv_b, "dv_h": dv_h, "dv_t": dv_t, "lines": lists.start.shape[1], "owners": Hkv, "scale": call.scale,
            "CONTIGUOUS": lists.contiguous, "MERGE": adding, "ALIGN": alignment(q.shape[3], q, k, call.v, dout),
        },
        warps, stages,
    )  # fmt: skip
    if work.splits is None:
        return
    for gradient, part in ((dk, part_k), (dv, part_v)):
        x_b, x_h, x_t, _ = gradient.stride()
        launch(
            add_pieces, len(work.splits) * B, (gradient, part, work.splits, component.group, None, component.k_index),
            {
                "x_b": x_b, "x_h": x_h, "x_t": x_t, "index_stride": numbers["k_index_stride"], "x_len": Tk,
                "x_start": component.k_start, "batch": B, "batch_groups": component.batch_groups,
                "D": numbers["D"], "BD": BD, "BX": BN, "SHARE": call.share, "MERGE": adding,
            },
            4, 1,
        )  # fmt: skip


def _keys_of_each_head(
    call: Call, component: Component, dout: Tensor, lse2: Tensor, delta: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Adds to dk and dv what the heads of each key head give, one gradient a query head."""
    (B, Hkv, Tk, D), share = call.k.shape, call.share
    k, v = call.k.repeat_interleave(share, 1), call.v.repeat_interleave(share, 1)
    own_k = torch.zeros((B, Hkv * share, Tk, D), dtype=torch.float32, device=k.device)
    own_v = torch.zeros_like(own_k)
    _keys(replace(call, k=k, v=v), component, dout, lse2, delta, own_k, own_v, adding=True)
    for gradient, own in ((dk, own_k), (dv, own_v)):
        gradient.add_(own.view(B, Hkv, share, Tk, D).sum(2).to(gradient.dtype))


class _BiasSums:
    """ds summed over each visited tile, then over the tiles of a bias block and over the batch.

    Attributes:
        tiles: [B, H, query tiles, key tiles] float32, whole bias blocks of tiles.
        first: place of the first query tile among them.
    """

    def __init__(self, tiles: Tensor, first: int, a: int, b: int):
        self.tiles, self.first, self.a, self.b = tiles, first, a, b

    @classmethod
    def empty(cls, call: Call) -> _BiasSums:
        component, bias = call.layout.components[0], call.bias
        assert bias is not None
        a, b = call.bias_block // component.block_q, call.bias_block // component.block_k
        B, H = call.q.shape[:2]
        first = call.numbers(component)["bias_first"] // component.block_q
        rows = max(bias.shape[1] * a, first + component.q_blocks)
        rows, columns = -(-rows // a) * a, max(bias.shape[2], -(-component.k_blocks // b)) * b
        tiles = torch.zeros((B, H, rows, columns), dtype=torch.float32, device=call.q.device)
        return cls(tiles, first, a, b)

    def reduced(self, bias: Tensor) -> Tensor:
        B, H, rows, columns = self.tiles.shape
        blocks = self.tiles.view(B, H, rows // self.a, self.a, columns // self.b, self.b).sum((0, 3, 5))
        blocks = blocks[:, : bias.shape[1], : bias.shape[2]]
        return blocks.sum(0, keepdim=True) if bias.shape[0] == 1 and H > 1 else blocks.contiguous()
