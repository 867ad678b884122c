"""The backward pass in Triton: for each component one launch over rows (dq) and one over columns (dk, dv).

Every sum has one order: gradients of components add up in the order of the components, pieces of a cut line in theirs, heads
that share a key head in theirs. Triton is imported here: import this file lazily.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longspan_kernels.block_sparse.args import (
    LEAST_SCALE,
    Call,
    alignment,
    from_16_bytes,
    on_meta,
    output_like,
    readable,
    streamed,
    width_of,
)
from longspan_kernels.block_sparse.layout import Component, Layout
from longspan_kernels.block_sparse.triton.backward_columns import backward_columns
from longspan_kernels.block_sparse.triton.backward_order import (
    PAIRED_WIDTH,
    Room,
    RowNumbers,
    adds_up,
    column_work,
    in_pairs,
    orders_keys_by_head,
    row_work,
    rows_are_listed,
    rows_go_first,
)
from longspan_kernels.block_sparse.triton.backward_rows import backward_rows
from longspan_kernels.block_sparse.triton.backward_sums import add_pieces, prepare_rows
from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.block_sparse.triton.forward import compile_first
from longspan_kernels.block_sparse.triton.schedule import Work
from longspan_kernels.block_sparse.triton.tuning import launch_of
from longspan_kernels.launch.graphs import capturing, made_outside_graphs
from longspan_kernels.launch.launcher import PIECE_ROWS, SMALL, Plan, on_its_device, without_tma

PREPARED_AT_ONCE = 64  # rows a program


@on_its_device
def triton_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, layout: Layout, *,
    scale: float, q_lengths: Tensor | None = None, k_lengths: Tensor | None = None,
    q_segments: Tensor | None = None, k_segments: Tensor | None = None,
    dropout_p: float = 0.0, seed: Tensor | None = None, bias: Tensor | None = None, bias_block: int = 0,
    columns: Layout | None = None, sides: tuple[str, ...] = ("rows", "columns"),
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of `triton_forward`, whose arguments and results these are; dout [B, H, Tq, D], dlse [B, H, Tq] or None.

    Args:
        columns: the same pattern compiled with other tiles, for the pass over columns; None for `layout` itself.
        sides: what to compute: "rows" gives dq and dbias, "columns" dk and dv; what is left out holds anything.

    Returns:
        dq, dk, dv in the dtype of q, and dbias float32 in the shape of the bias (None without one). The same bits each run.
    """
    if interprets_bfloat16(q):
        *found, dbias = triton_backward(
            dout.float(), dlse, q.float(), k.float(), v.float(), out.float(), lse, layout, scale=scale, q_lengths=q_lengths,
            k_lengths=k_lengths, q_segments=q_segments, k_segments=k_segments, dropout_p=dropout_p, seed=seed, bias=bias,
            bias_block=bias_block, columns=columns, sides=sides,
        )  # fmt: skip
        dq, dk, dv = (x.to(q.dtype) for x in found)
        return dq, dk, dv, dbias
    call = Call(q, k, v, layout, scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, bias, bias_block)
    dout, out = readable(dout), readable(out)
    lse, dlse = from_16_bytes(lse.contiguous()), None if dlse is None else from_16_bytes(dlse.float().contiguous())
    columns = layout if columns is None else columns
    key = ("backward", call.key, *sides, dout.stride(), out.stride(), dlse is None)
    compile_first(call, key, lambda: plan_backward(call, layout, columns, dout, dlse, out, sides))
    return _backward(call, dout, dlse, out, lse, columns.components, sides)


def plan_backward(
    call: Call, layout: Layout, columns: Layout, dout: Tensor, dlse: Tensor | None, out: Tensor,
    sides: tuple[str, ...] = ("rows", "columns"),
) -> None:  # fmt: skip
    """Has `launcher.compiling` collect what the backward pass of a call launches, whatever its layout."""
    given = call.without_memory(layout)
    lse = torch.empty(call.q.shape[:3], dtype=torch.float32, device="meta")
    dlse = None if dlse is None else lse
    _backward(given, on_meta(dout), dlse, on_meta(out), lse, columns.components, sides)


def _backward(
    call: Call, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, by_columns: list[Component],
    sides: tuple[str, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    layout = call.layout
    dq, dk, dv = output_like(call.q), output_like(call.k), output_like(call.v)
    sums = _BiasSums.empty(call) if call.bias is not None else None
    if len(sides) == 2 and rows_go_first(call, layout, by_columns):
        # Rows work out delta and leave it behind; their partial results lie in dk's memory, which is written after them.
        numbers = RowNumbers(lse, torch.empty_like(lse), out, dlse, left=True)
        _all_rows(call, layout, dout, numbers, dq, sums, Room(dk))
        _all_columns(call, by_columns, dout, numbers, dk, dv, None)
    else:
        # Where columns are cut, delta and the partial results of columns lie in dq's memory, which is written after them.
        room = Room(dq)
        pairs = room.take(*lse.shape, 2) if in_pairs(call, by_columns) else None
        read = pairs is not None and not rows_are_listed(call)
        minus_delta = torch.empty_like(lse) if read else room.take(*lse.shape)
        numbers = RowNumbers(lse, minus_delta, out, dlse, left=False, pairs=pairs, read=read)
        if "columns" in sides or read:
            _prepare(call, dout, numbers)
        if "columns" in sides:
            _all_columns(call, by_columns, dout, numbers, dk, dv, room)
        if "rows" in sides:
            _all_rows(call, layout, dout, numbers, dq, sums, None)
    if call.negate:
        dq.neg_()
    if call.scale == LEAST_SCALE:  # stands for 0
        dq.zero_()
        dk.zero_()
    return dq, dk, dv, None if sums is None or call.bias is None else sums.reduced(call.bias)


def _all_rows(
    call: Call, layout: Layout, dout: Tensor, numbers: RowNumbers, dq: Tensor, sums: _BiasSums | None, room: Room | None
) -> None:  # fmt: skip
    if not layout.covered:
        dq.zero_()
    for number, component in enumerate(layout.components):
        _queries(call, component, dout, numbers, dq, sums, room, merging=number > 0 or not layout.covered)


def _all_columns(
    call: Call, components: list[Component], dout: Tensor, numbers: RowNumbers, dk: Tensor, dv: Tensor, room: Room | None
) -> None:  # fmt: skip
    if not components or adds_up(0, components[0]):
        dk.zero_()
        dv.zero_()
    for number, component in enumerate(components):
        _keys(call, component, dout, numbers, dk, dv, room, adding=adds_up(number, component))


def _prepare(call: Call, dout: Tensor, numbers: RowNumbers) -> None:
    """Writes -delta [B, H, Tq]."""
    out, dlse = numbers.out, numbers.dlse
    B, H, Tq, D = out.shape
    cache = call.layout.components[0].cache if call.layout.components else {}
    key = ("prepare", call.key, dout.stride(), out.stride(), dlse is None, numbers.pairs is None)
    plan = cache.get(key)
    if plan is None:
        (o_b, o_h, o_t, _), (do_b, do_h, do_t, _) = out.stride(), dout.stride()
        lines = -(-Tq // PREPARED_AT_ONCE)
        plan = cache[key] = Plan(prepare_rows, lines * B * H, {
            "o_b": o_b, "o_h": o_h, "o_t": o_t, "do_b": do_b, "do_h": do_h, "do_t": do_t, "q_len": Tq, "owners": H,
            "lines": lines, "D": D, "BD": width_of(D), "BM": PREPARED_AT_ONCE, "ALIGN": alignment(D, out, dout),
        }, SMALL)  # fmt: skip
    plan(out, dout, numbers.lse, dlse, numbers.minus_delta, numbers.pairs)


@dataclass
class _Side:
    """What the launches over one component's rows, or columns, have in common for all calls of one kind."""

    work: Work
    pattern: tuple
    by_tma: bool
    part: tuple[int, int, int] | None  # shape of the partial results
    main: Plan
    add: list[Plan]


def _queries(
    call: Call, component: Component, dout: Tensor, numbers: RowNumbers, dq: Tensor, sums: _BiasSums | None,
    room: Room | None, merging: bool,
) -> None:  # fmt: skip
    key = ("rows", merging, numbers.left, numbers.read, call.key, dout.stride(), numbers.out.stride(),
           numbers.dlse is None, dq.dtype)  # fmt: skip
    side = component.cache.get(key)
    if side is None:
        side = made_outside_graphs(
            lambda: _plan_rows(call, component, dout, numbers, dq, sums, merging), call.device, not component.dynamic
        )
        component.cache[key] = side
    part = _no_row_pieces(side, numbers)
    if side.part is not None:
        own = torch.empty(side.part, dtype=torch.float32, device=dq.device) if room is None else None
        part = own if room is None else room.rest().take(*side.part)
    side.main(*_row_tensors(call, component, side, dout, numbers, dq, sums, part))
    for plan in side.add:
        plan(dq, part, side.work.splits, component.group, component.merge, component.q_index)


def _no_row_pieces(side: _Side, numbers: RowNumbers) -> Tensor | None:
    """As in the forward: listed rows that are not cut take any address for pieces."""
    return None if side.work.items is None else numbers.lse


def _row_tensors(
    call: Call, component: Component, side: _Side, dout: Tensor, numbers: RowNumbers, dq: Tensor, sums: _BiasSums | None,
    part: Tensor | None,
) -> tuple:  # fmt: skip
    keys, _ = streamed((call.k, call.v), component, "k", side.by_tma, call)
    return (
        call.q, *keys, dout, numbers.lse, numbers.minus_delta, *numbers.made_of(), dq, *side.pattern, component.merge,
        side.work.items, part, *call.limits(component), None if sums is None else sums.tiles,
    )  # fmt: skip


def _plan_rows(
    call: Call, component: Component, dout: Tensor, row_numbers: RowNumbers, dq: Tensor, sums: _BiasSums | None, merging: bool
) -> _Side:  # fmt: skip
    B, H, Tq, D = call.q.shape
    work = row_work(call, component)
    choice = launch_of("backward_rows", call.q, component, call.device)
    numbers = call.numbers(component)
    by_tma = streamed((call.k, call.v), component, "k", choice.by_tma, call)[1]
    choice = choice if by_tma else without_tma(choice)
    (do_b, do_h, do_t, _), (dq_b, dq_h, dq_t, _) = dout.stride(), dq.stride()
    out = row_numbers.out
    o_b, o_h, o_t, _ = out.stride()
    lists = component.rows
    main = Plan(backward_rows, work.programs(B), numbers | {
        "o_b": o_b, "o_h": o_h, "o_t": o_t, "do_b": do_b, "do_h": do_h, "do_t": do_t, "dq_b": dq_b, "dq_h": dq_h, "dq_t": dq_t,
        "sums_h": 0 if sums is None else sums.tiles.stride(1), "sums_row": 0 if sums is None else sums.tiles.stride(2),
        "sums_first": 0 if sums is None else sums.first, "lines": lists.start.shape[1], "owners": H,
        "scale": float(call.scale), "log2_scale": math.log2(call.scale), "CONTIGUOUS": lists.contiguous,
        "leaves_delta": int(row_numbers.left), "DROPOUT": call.seed is not None, "MERGE": merging,
        "ALIGN": alignment(D, call.q, call.k, call.v, dout, dq, out),
        "ONE_LOOP": choice.one_loop and len(component.masks) > 0, "BY_TMA": by_tma,
    }, choice)  # fmt: skip
    add = Plan(add_pieces, max(1, work.cut) * B * (component.block_q // PIECE_ROWS), {
        "x_b": dq_b, "x_h": dq_h, "x_t": dq_t, "index_stride": numbers["q_index_stride"], "x_len": Tq,
        "x_start": component.q_start, "batch": B, "batch_groups": component.batch_groups,
        "D": D, "BD": numbers["BD"], "B": numbers["BM"], "BX": PIECE_ROWS, "SHARE": 1, "MERGE": merging,
        "ALIGN": alignment(D, dq),
    }, SMALL)  # fmt: skip
    part = (work.slots * B, component.block_q, numbers["BD"]) if work.slots else None
    pattern = call.pattern(component, "rows", work.items is not None)
    return _Side(work, pattern, by_tma, part, main, [add] if work.cut else [])


def _keys(
    call: Call, component: Component, dout: Tensor, numbers: RowNumbers, dk: Tensor, dv: Tensor, room: Room | None,
    adding: bool,
) -> None:  # fmt: skip
    if orders_keys_by_head(call, component):
        _keys_of_each_head(call, component, dout, numbers, dk, dv, room)
        return
    key = ("columns", adding, call.key, dout.stride(), dk.dtype)
    side = component.cache.get(key)
    if side is None:
        side = made_outside_graphs(
            lambda: _plan_columns(call, component, dout, numbers.lse, dk, dv, adding), call.device, not component.dynamic
        )
        component.cache[key] = side
    part_k = part_v = _no_column_pieces(side, numbers, dk)
    if side.part is not None:
        assert room is not None  # rows that go first leave no room, and wait for columns that are not cut
        room, dtype = room.rest(), _kept_as(dk, numbers.lse).dtype
        part_k, part_v = (room.take(*side.part).view(dtype) for _ in range(2))
    side.main(*_column_tensors(call, component, side, dout, numbers, dk, dv, part_k, part_v))
    for plan, gradient, part in zip(side.add, (dk, dv), (part_k, part_v), strict=False):
        plan(gradient, part, side.work.splits, component.group, None, component.k_index)


def _no_column_pieces(side: _Side, numbers: RowNumbers, dk: Tensor) -> Tensor | None:
    return None if side.work.items is None or side.work.in_two else _kept_as(dk, numbers.lse)


def _column_tensors(
    call: Call, component: Component, side: _Side, dout: Tensor, numbers: RowNumbers, dk: Tensor, dv: Tensor,
    part_k: Tensor | None, part_v: Tensor | None,
) -> tuple:  # fmt: skip
    row_numbers = (numbers.lse, numbers.minus_delta) if numbers.pairs is None else (numbers.pairs, None)
    (queries, douts), _ = streamed((call.q, dout), component, "q", side.by_tma, call)
    return (
        queries, call.k, call.v, douts, *row_numbers, dk, dv, *side.pattern, side.work.items, part_k, part_v,
        _flags(side.work, call, component), *call.limits(component),
    )  # fmt: skip


def _kept_as(dk: Tensor, lse: Tensor) -> Tensor:
    """A tensor of the type that pieces of columns are kept in."""
    return dk if width_of(dk.shape[3]) <= PAIRED_WIDTH else lse


def _flags(work: Work, call: Call, component: Component) -> Tensor | None:
    """[flags] int32, 0 until the first half of a line is written; any numbers where none is cut in two; None for other cuts."""
    if not work.in_two or work.items is None:
        return None
    if not work.flags:
        return component.group
    device, count = call.device, work.flags * call.q.shape[0]
    if capturing(device):
        return torch.zeros(count, dtype=torch.int32, device=device)  # the graph's own, wherever it is replayed
    # Every launch leaves them at 0, and launches on one stream come one after another.
    key = ("flags", count, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
    if key not in component.cache:
        component.cache[key] = made_outside_graphs(lambda: torch.zeros(count, dtype=torch.int32, device=device), device)
    return component.cache[key]


def _plan_columns(
    call: Call, component: Component, dout: Tensor, lse: Tensor, dk: Tensor, dv: Tensor, adding: bool
) -> _Side:  # fmt: skip
    B, Hkv, Tk, D = call.k.shape
    work = column_work(call, component, adding)
    choice = launch_of("backward_columns", call.q, component, call.device)
    numbers = call.numbers(component)
    by_tma = streamed((call.q, dout), component, "q", choice.by_tma, call)[1]
    choice = choice if by_tma else without_tma(choice)
    (do_b, do_h, do_t, _), (dk_b, dk_h, dk_t, _), (dv_b, dv_h, dv_t, _) = dout.stride(), dk.stride(), dv.stride()
    lists = component.columns
    main = Plan(backward_columns, work.programs(B), numbers | {
        "do_b": do_b, "do_h": do_h, "do_t": do_t, "dk_b": dk_b, "dk_h": dk_h, "dk_t": dk_t, "dv_b": dv_b, "dv_h": dv_h,
        "dv_t": dv_t, "lines": lists.start.shape[1], "owners": Hkv, "scale": float(call.scale),
        "flags": work.flags * B, "CONTIGUOUS": lists.contiguous, "MERGE": adding,
        "ALIGN": alignment(D, call.q, call.k, call.v, dout, dk, dv),
        "ONE_LOOP": choice.one_loop and len(component.masks) > 0, "BY_TMA": by_tma,
        "SERIAL_MASKS": choice.serial_masks, "IN_SUMS": choice.in_sums,
    }, choice)  # fmt: skip
    add = [
        Plan(add_pieces, max(1, work.cut) * B * (component.block_k // PIECE_ROWS), {
            "x_b": x_b, "x_h": x_h, "x_t": x_t, "index_stride": numbers["k_index_stride"], "x_len": Tk,
            "x_start": component.k_start, "batch": B, "batch_groups": component.batch_groups,
            "D": D, "BD": numbers["BD"], "B": numbers["BN"], "BX": PIECE_ROWS, "SHARE": call.share, "MERGE": adding,
            "ALIGN": alignment(D, dk),
        }, SMALL)
        for x_b, x_h, x_t, _ in (dk.stride(), dv.stride())
    ]  # fmt: skip
    part = (work.slots * B, component.block_k, numbers["BD"]) if work.slots else None
    pattern = call.pattern(component, "columns", work.items is not None and call.share == 1)
    return _Side(work, pattern, by_tma, part, main, add if work.cut else [])


def _keys_of_each_head(
    call: Call, component: Component, dout: Tensor, numbers: RowNumbers, dk: Tensor, dv: Tensor, room: Room | None
) -> None:  # fmt: skip
    """Adds to dk and dv what the heads of each key head give, one gradient a query head."""
    (B, Hkv, Tk, D), share = call.k.shape, call.share
    k, v = call.k.repeat_interleave(share, 1), call.v.repeat_interleave(share, 1)
    own_k = torch.zeros((B, Hkv * share, Tk, D), dtype=torch.float32, device=k.device)
    own_v = torch.zeros_like(own_k)
    repeated = replace(call, k=k, v=v)
    _keys(repeated, component, dout, numbers, own_k, own_v, room, adding=True)
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
