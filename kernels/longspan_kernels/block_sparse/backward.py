"""The backward pass in Triton: for each component one launch over rows (dq) and one over columns (dk, dv).

Every sum has one order: gradients of components add up in the order of the components, pieces of a cut line in theirs, heads
that share a key head in theirs. Triton is imported here: import this file lazily.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .arguments import Call, alignment, output_like, rows_of_unit_stride, streamed, width_of
from .backward_columns_kernel import backward_columns
from .backward_rows_kernel import backward_rows
from .backward_sums import add_pieces, prepare_rows
from .launching import SMALL, Plan, on_its_device, without_tma
from .layout import Component, Layout
from .outside_graphs import made_outside_graphs
from .schedule import Work, work_of
from .tuning import launch_of

PREPARED_AT_ONCE = 64  # rows a program
# Up to this head width pieces of columns are kept as pairs of the gradient's dtype: no spills at 168 registers, where a float32
# store in the epilogue has the loop spill 88 bytes a thread. Wider ones have no registers to spare either way.
PAIRED_WIDTH = 64


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
    call = Call(q, k, v, layout, scale, q_lengths, k_lengths, q_segments, k_segments, dropout_p, seed, bias, bias_block)
    dout, out = rows_of_unit_stride(dout), rows_of_unit_stride(out)
    lse, dlse = lse.contiguous(), None if dlse is None else dlse.float().contiguous()
    call.reads_too(dout, out, lse, dlse)
    dq, dk, dv = output_like(call.q), output_like(call.k), output_like(call.v)
    # dq is written last: until then the pass over columns finds its row numbers and partial results in dq's memory.
    room = Room(dq)
    pairs = room.take(2 * lse.numel())
    delta = None if _adds_up_delta(call) else torch.empty(lse.shape, dtype=torch.float32, device=lse.device)
    _prepare(call, dout, dlse, out, lse, delta, pairs)
    by_columns = (layout if columns is None else columns).components
    if not by_columns or not _covers_keys(by_columns[0]):
        dk.zero_()
        dv.zero_()
    for number, component in enumerate(by_columns if "columns" in sides else ()):
        _keys(call, component, dout, pairs, dk, dv, room.rest(), adding=number > 0 or not _covers_keys(component))
    if not layout.covered:
        dq.zero_()
    sums = _BiasSums.empty(call) if bias is not None else None
    for number, component in enumerate(layout.components if "rows" in sides else ()):
        rows = _RowNumbers(lse, delta, out, dlse)
        _queries(call, component, dout, rows, dq, sums, merging=number > 0 or not layout.covered)
    if call.negate:
        dq.neg_()
    return dq, dk, dv, None if sums is None or call.bias is None else sums.reduced(call.bias)


class Room:
    """The memory of a contiguous tensor that is not written yet, for float32 numbers; memory of their own once it is full."""

    def __init__(self, x: Tensor, used: int = 0):
        self.x, self.used = x, used

    def take(self, *shape: int) -> Tensor:
        count = 4 * math.prod(shape)
        stop = self.used + count
        if stop > self.x.numel() * self.x.element_size():
            return torch.empty(shape, dtype=torch.float32, device=self.x.device)
        found = self.x.view(-1).view(torch.uint8)[self.used : stop].view(torch.float32).view(shape)
        self.used = -(-stop // 256) * 256
        return found

    def rest(self) -> Room:
        """What is not taken; what is taken from it does not count here."""
        return Room(self.x, self.used)


def _adds_up_delta(call: Call) -> bool:
    """Whether the pass over rows works delta out from out and dout, instead of finding it in memory: where rows are listed,
    whose partial results take as much."""
    components = call.layout.components
    if not components or any(component.dynamic for component in components):
        return False
    key = ("adds up delta", call.key)
    if key not in components[0].cache:
        components[0].cache[key] = made_outside_graphs(
            lambda: any(_row_work(call, component).items is not None for component in components), call.q.device
        )
    return components[0].cache[key]


def _row_work(call: Call, component: Component) -> Work:
    return work_of(component, "rows", 1, call.q.shape[0], everything=call.layout.covered and component.covers)


def _covers_keys(component: Component) -> bool:
    """Whether every key has a place in this order, so that a first component writes all of dk and dv."""
    return component.k_index is None or component.order.startswith("residue")


def _prepare(
    call: Call, dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, delta: Tensor | None, pairs: Tensor
) -> None:  # fmt: skip
    """Writes delta [B, H, Tq] where there is one, and in `pairs` lse in base 2 and delta of each query side by side."""
    B, H, Tq, D = out.shape
    cache = call.layout.components[0].cache if call.layout.components else {}
    key = ("prepare", call.key, dout.stride(), out.stride(), dlse is None, delta is None)
    plan = cache.get(key)
    if plan is None:
        (o_b, o_h, o_t, _), (do_b, do_h, do_t, _) = out.stride(), dout.stride()
        lines = -(-Tq // PREPARED_AT_ONCE)
        plan = cache[key] = Plan(prepare_rows, lines * B * H, {
            "o_b": o_b, "o_h": o_h, "o_t": o_t, "do_b": do_b, "do_h": do_h, "do_t": do_t, "q_len": Tq, "owners": H,
            "lines": lines, "D": D, "BD": width_of(D), "BM": PREPARED_AT_ONCE, "ALIGN": alignment(D, out, dout),
        }, SMALL, call.aligned)  # fmt: skip
    plan(out, dout, lse, dlse, delta, pairs)


@dataclass
class _Side:
    """What the launches over one component's rows, or columns, have in common for all calls of one kind."""

    work: Work
    pattern: tuple
    by_tma: bool
    part: tuple[int, int, int] | None  # shape of the partial results
    main: Plan
    add: list[Plan]


@dataclass
class _RowNumbers:
    """What the pass over rows knows of each query: lse, and delta or what it is made of."""

    lse: Tensor
    delta: Tensor | None
    out: Tensor
    dlse: Tensor | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """(LSE, DELTA, OUT, DLSE)"""
        return (self.lse, self.delta, None, None) if self.delta is not None else (self.lse, None, self.out, self.dlse)


def _queries(
    call: Call, component: Component, dout: Tensor, numbers: _RowNumbers, dq: Tensor, sums: _BiasSums | None, merging: bool
) -> None:  # fmt: skip
    out = None if numbers.delta is not None else numbers.out
    key = ("rows", merging, call.key, dout.stride(), None if out is None else out.stride(), numbers.dlse is None, dq.dtype)
    side = component.cache.get(key)
    if side is None:
        side = made_outside_graphs(
            lambda: _plan_rows(call, component, dout, out, dq, sums, merging), dq.device, not component.dynamic
        )
        component.cache[key] = side
    # As in the forward: listed rows that are not cut take any address for pieces.
    part = None if side.work.items is None else numbers.lse
    if side.part is not None:
        part = torch.empty(side.part, dtype=torch.float32, device=dq.device)
    keys, _ = streamed((call.k, call.v), component, "k", side.by_tma, call)
    side.main(
        call.q, *keys, dout, *numbers.tensors(), dq, *side.pattern, component.merge, side.work.items, part,
        *call.limits(component), None if sums is None else sums.tiles,
    )  # fmt: skip
    for plan in side.add:
        plan(dq, part, side.work.splits, component.group, component.merge, component.q_index)


def _plan_rows(
    call: Call, component: Component, dout: Tensor, out: Tensor | None, dq: Tensor, sums: _BiasSums | None, merging: bool
) -> _Side:  # fmt: skip
    B, H, Tq, D = call.q.shape
    work = _row_work(call, component)
    choice = launch_of("backward_rows", call.q, component)
    numbers = call.numbers(component)
    by_tma = streamed((call.k, call.v), component, "k", choice.by_tma, call)[1]
    choice = choice if by_tma else without_tma(choice)
    (do_b, do_h, do_t, _), (dq_b, dq_h, dq_t, _) = dout.stride(), dq.stride()
    o_b, o_h, o_t, _ = (0, 0, 0, 0) if out is None else out.stride()
    aligned = alignment(D, call.q, call.k, call.v, dout, dq, *(() if out is None else (out,)))
    lists = component.rows
    main = Plan(backward_rows, work.programs * B, numbers | {
        "o_b": o_b, "o_h": o_h, "o_t": o_t, "do_b": do_b, "do_h": do_h, "do_t": do_t, "dq_b": dq_b, "dq_h": dq_h, "dq_t": dq_t,
        "sums_h": 0 if sums is None else sums.tiles.stride(1), "sums_row": 0 if sums is None else sums.tiles.stride(2),
        "sums_first": 0 if sums is None else sums.first, "lines": lists.start.shape[1], "owners": H,
        "scale": float(call.scale), "CONTIGUOUS": lists.contiguous,
        "DROPOUT": call.seed is not None, "MERGE": merging, "ALIGN": aligned,
        "ONE_LOOP": choice.one_loop and len(component.masks) > 0, "BY_TMA": by_tma,
    }, choice, call.aligned)  # fmt: skip
    add = []
    if work.splits is not None:
        add.append(Plan(add_pieces, len(work.splits) * B, {
            "x_b": dq_b, "x_h": dq_h, "x_t": dq_t, "index_stride": numbers["q_index_stride"], "x_len": Tq,
            "x_start": component.q_start, "batch": B, "batch_groups": component.batch_groups,
            "D": D, "BD": numbers["BD"], "BX": numbers["BM"], "SHARE": 1, "MERGE": merging, "ALIGN": alignment(D, dq),
        }, SMALL, call.aligned))  # fmt: skip
    part = (work.slots * B, component.block_q, numbers["BD"]) if work.slots else None
    return _Side(work, call.pattern(component, "rows", work.items is not None), by_tma, part, main, add)


def _keys(
    call: Call, component: Component, dout: Tensor, pairs: Tensor, dk: Tensor, dv: Tensor, room: Room, adding: bool
) -> None:  # fmt: skip
    if component.k_index is not None and component.k_index.dim() == 2 and call.share > 1:
        # Heads that share keys may each have an order of their own: a gradient for each, added up afterwards.
        _keys_of_each_head(call, component, dout, pairs, dk, dv, room)
        return
    key = ("columns", adding, call.key, dout.stride(), dk.dtype)
    side = component.cache.get(key)
    if side is None:
        side = made_outside_graphs(
            lambda: _plan_columns(call, component, dout, dk, dv, adding), dk.device, not component.dynamic
        )
        component.cache[key] = side
    kept = dk.dtype if width_of(dk.shape[3]) <= PAIRED_WIDTH else torch.float32
    part_k = part_v = None if side.work.items is None else dk if kept == dk.dtype else pairs
    if side.part is not None:
        part_k, part_v = (room.take(*side.part).view(kept) for _ in range(2))
    (queries, douts), _ = streamed((call.q, dout), component, "q", side.by_tma, call)
    side.main(
        queries, call.k, call.v, douts, pairs, dk, dv, *side.pattern, side.work.items, part_k, part_v,
        *call.limits(component),
    )  # fmt: skip
    for plan, gradient, part in zip(side.add, (dk, dv), (part_k, part_v), strict=False):
        plan(gradient, part, side.work.splits, component.group, None, component.k_index)


def _plan_columns(call: Call, component: Component, dout: Tensor, dk: Tensor, dv: Tensor, adding: bool) -> _Side:
    B, Hkv, Tk, D = call.k.shape
    work = work_of(component, "columns", call.share, B, everything=not adding)
    choice = launch_of("backward_columns", call.q, component)
    numbers = call.numbers(component)
    by_tma = streamed((call.q, dout), component, "q", choice.by_tma, call)[1]
    choice = choice if by_tma else without_tma(choice)
    (do_b, do_h, do_t, _), (dk_b, dk_h, dk_t, _), (dv_b, dv_h, dv_t, _) = dout.stride(), dk.stride(), dv.stride()
    lists = component.columns
    main = Plan(backward_columns, work.programs * B, numbers | {
        "do_b": do_b, "do_h": do_h, "do_t": do_t, "dk_b": dk_b, "dk_h": dk_h, "dk_t": dk_t, "dv_b": dv_b, "dv_h": dv_h,
        "dv_t": dv_t, "lines": lists.start.shape[1], "owners": Hkv, "scale": float(call.scale),
        "CONTIGUOUS": lists.contiguous, "MERGE": adding,
        "ALIGN": alignment(D, call.q, call.k, call.v, dout, dk, dv),
        "ONE_LOOP": choice.one_loop and len(component.masks) > 0, "BY_TMA": by_tma, "SERIAL_MASKS": choice.serial_masks,
    }, choice, call.aligned)  # fmt: skip
    add = []
    splits = 0 if work.splits is None else len(work.splits)
    for x_b, x_h, x_t, _ in (dk.stride(), dv.stride()) if splits else ():
        add.append(Plan(add_pieces, splits * B, {
            "x_b": x_b, "x_h": x_h, "x_t": x_t, "index_stride": numbers["k_index_stride"], "x_len": Tk,
            "x_start": component.k_start, "batch": B, "batch_groups": component.batch_groups,
            "D": D, "BD": numbers["BD"], "BX": numbers["BN"], "SHARE": call.share, "MERGE": adding, "ALIGN": alignment(D, dk),
        }, SMALL, call.aligned))  # fmt: skip
    part = (work.slots * B, component.block_k, numbers["BD"]) if work.slots else None
    return _Side(
        work,
        call.pattern(component, "columns", work.items is not None and call.share == 1),
        by_tma,
        part,
        main,
        add,
    )


def _keys_of_each_head(
    call: Call, component: Component, dout: Tensor, pairs: Tensor, dk: Tensor, dv: Tensor, room: Room
) -> None:  # fmt: skip
    """Adds to dk and dv what the heads of each key head give, one gradient a query head."""
    (B, Hkv, Tk, D), share = call.k.shape, call.share
    k, v = call.k.repeat_interleave(share, 1), call.v.repeat_interleave(share, 1)
    own_k = torch.zeros((B, Hkv * share, Tk, D), dtype=torch.float32, device=k.device)
    own_v = torch.zeros_like(own_k)
    repeated = replace(call, k=k, v=v)
    repeated.reads_too(dout)
    _keys(repeated, component, dout, pairs, own_k, own_v, room, adding=True)
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
