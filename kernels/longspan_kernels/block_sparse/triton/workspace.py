"""Memory of the backward pass between its launches: delta, partial results of split tile rows and columns, sums for a bias.

It says which pass goes first and where these numbers lie, and has the kernels that make them and add them up.

Legend: BM x BN the tile of queries x keys, BD the head width D rounded up to a power of two, REPEAT query heads a key head.
Triton is imported here: import this file lazily.
"""

# ruff: noqa: SIM102 (compile-time branches stay statements)
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.layout import Component
from longspan_kernels.block_sparse.triton.call import Call, index_stride
from longspan_kernels.block_sparse.triton.common import (
    LOG2E,
    READ_AHEAD,
    VARYING,
    Side,
    addresses,
    allowing_for_rounding,
    load_tile,
    split_of,
    tokens_of,
    within,
)
from longspan_kernels.block_sparse.triton.configs import row_kind
from longspan_kernels.block_sparse.triton.schedule import Work, work_of
from longspan_kernels.launch.graphs import capturing
from longspan_kernels.launch.launcher import SMALL, SPLIT_ROWS, Plan, alignment, width_of

PREPARED_AT_ONCE = 64  # rows a program
# Up to this head width partial results of columns are kept as pairs of the gradient's dtype: no spills at 168 registers, where
# a float32 store in the epilogue has the loop spill 88 bytes a thread. Wider ones have no registers to spare either way.
PAIRED_WIDTH = 64


@triton.jit(do_not_specialize=VARYING)
def prepare_rows(
    OUT, DOUT, LSE, DLSE, MINUS_DELTA, PAIRS, o_b: tl.int64, o_h: tl.int64, o_t: tl.int64, do_b: tl.int64, do_h: tl.int64,
    do_t: tl.int64, q_len: tl.int32, heads: tl.int32, tile_rows: tl.int32, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Writes -delta of each row, 0 for one without keys. With PAIRS it writes -delta there too, beside lse in base 2 (+inf
    without keys)."""
    pid = tl.program_id(0)
    tile_row = pid % tile_rows
    batch_head = (pid // tile_rows).to(tl.int64)
    b, h = batch_head // heads, batch_head % heads
    queries = Side(None, 0, 0, 0, 1, 1)
    base = tile_row * BM
    row = base + tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    ok = row < q_len
    # Without its alignment a head would be read number by number.
    OUT += tl.multiple_of(b * o_b + h * o_h, ALIGN)
    DOUT += tl.multiple_of(b * do_b + h * do_h, ALIGN)
    out = load_tile(OUT, row, base, ok, o_t, queries, offs_d, D, BM, 0, True).to(tl.float32)
    dout = load_tile(DOUT, row, base, ok, do_t, queries, offs_d, D, BM, 0, True).to(tl.float32)
    delta = tl.sum(out * dout, 1)
    at = batch_head * q_len + row
    if DLSE is not None:
        delta -= tl.load(DLSE + at, mask=ok, other=0.0)
    lse = tl.load(LSE + at, mask=ok, other=float("-inf"))
    empty = lse == float("-inf")
    minus_delta = tl.where(empty, 0.0, -delta)
    tl.store(MINUS_DELTA + at, minus_delta, mask=ok)
    if PAIRS is not None:
        both = tl.join(tl.where(empty, float("inf"), allowing_for_rounding(lse) * LOG2E), minus_delta)
        tl.store(PAIRS + 2 * at[:, None] + tl.arange(0, 2)[None, :], both, mask=ok[:, None])


@triton.jit
def is_second(FLAGS, partial, flags):
    """Whether this program has the second half of a tile column (see `Work.in_two`). It then waits until the first half is
    written. The first half belongs to an earlier program, which runs or has run, so the wait ends. The flag is reset for the
    next launch."""
    second = partial >= flags
    if second:
        while tl.atomic_cas(FLAGS + (partial - flags), 1, 0) != 1:
            pass
    return second


@triton.jit
def tell_second(FLAGS, partial, flags):
    """Sets the flag that the first half of a tile column is written."""
    if partial >= 0:
        if partial < flags:
            tl.debug_barrier()
            tl.atomic_xchg(FLAGS + partial, 1)


@triton.jit
def add_rows(
    X, value, token, base, ok, stride, side, merge, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr, RUN: tl.constexpr,
    MERGE: tl.constexpr,
):  # fmt: skip
    """Writes rows of a gradient, or adds them to what earlier components wrote."""
    offs_d = tl.arange(0, BD)
    at = addresses(X, token, base, stride, side, offs_d, B, RUN)
    keep = ok[:, None] & (offs_d < D)[None, :]
    if MERGE:
        if merge != 0:
            # Past the cache of this processor: another may have written it a moment ago.
            value += tl.load(at, mask=keep, other=0.0, cache_modifier=".cg").to(tl.float32)
    tl.store(at, value.to(X.dtype.element_ty), mask=keep)


@triton.jit
def add_rows_or_keep(X, PARTIAL, value, partial, token, base, ok, stride, side, C: tl.constexpr):
    """Adds rows of keys as `add_rows` does, or stores them in PARTIAL [partials, 2, BN, BD] where partial >= 0.

    A partial result is stored as two numbers of the gradient's dtype, whose sum is about as exact as a float32. Then one store
    serves both cases, which leaves registers to the loop before it (see PAIRED_WIDTH).
    """
    B: tl.constexpr = C.BN
    BD: tl.constexpr = C.BD
    offs_d = tl.arange(0, BD)
    at = addresses(X, token, base, stride, side, offs_d, B, C.K_STEPPED)
    keep = ok[:, None] & (offs_d < C.D)[None, :]
    split = (partial + tl.zeros([B, 1], tl.int32)) >= 0
    place = PARTIAL + (partial.to(tl.int64) * (2 * B) + tl.arange(0, B))[:, None] * BD + offs_d[None, :]
    if C.MERGE:
        value += tl.load(at, mask=keep & ~split, other=0.0).to(tl.float32)
    high = value.to(X.dtype.element_ty)
    tl.store(tl.where(split, place, at), high, mask=keep | split)
    if partial >= 0:
        tl.store(place + B * BD, (value - high.to(tl.float32)).to(X.dtype.element_ty))


@triton.jit(do_not_specialize=VARYING)
def add_splits(
    X, PARTIAL, SPLITS, GROUP, MERGES, X_INDEX, x_b: tl.int64, x_h: tl.int64, x_t: tl.int64, index_stride: tl.int64,
    x_len: tl.int32, x_start: tl.int32, batch: tl.int32, batch_groups: tl.int32, D: tl.constexpr, BD: tl.constexpr,
    B: tl.constexpr, BX: tl.constexpr, REPEAT: tl.constexpr, MERGE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Adds up the partial results of one split tile row or column, in their order: BX of its B tokens a program."""
    PARTS: tl.constexpr = B // BX
    b, part, head, tile_row, first_partial, count = split_of(SPLITS, batch, PARTS)
    offs_x = part * BX + tl.arange(0, BX)
    offs_d = tl.arange(0, BD)
    HALVES: tl.constexpr = 1 if PARTIAL.dtype.element_ty == tl.float32 else 2
    acc = tl.zeros([BX, BD], tl.float32)
    for number in tl.range(0, count, num_stages=READ_AHEAD):
        place = ((first_partial + number) * batch + b).to(tl.int64) * (HALVES * B) + offs_x
        found = tl.load(PARTIAL + place[:, None] * BD + offs_d[None, :]).to(tl.float32)
        if HALVES == 2:
            found += tl.load(PARTIAL + B * BD + place[:, None] * BD + offs_d[None, :]).to(tl.float32)
        acc += found
    u = (tl.maximum(tl.load(GROUP + head * REPEAT), 0) + b * batch_groups).to(tl.int64)
    side = Side(X_INDEX, index_stride, u, x_start, 1, 1)
    base, token = tokens_of(side, tile_row * PARTS + part, BX, 0)
    merge = 1
    if MERGES is not None:
        merge = tl.load(MERGES + head)
    x = X + tl.multiple_of(b.to(tl.int64) * x_b + head.to(tl.int64) * x_h, ALIGN)
    ok = within(token, x_len)
    add_rows(x, acc, token, base, ok, x_t, side, merge, D, BD, BX, 0, MERGE)


@dataclass
class RowNumbers:
    """The numbers of each query that the passes need: lse, -delta, and what delta is computed from.

    `left`: the pass over rows computes -delta from out and dout and writes it; otherwise it is written before. `pairs` [B, H,
    Tq, 2] holds -delta beside lse in base 2, where it is given. `read`: the pass over rows reads -delta.
    """

    lse: Tensor
    minus_delta: Tensor
    out: Tensor
    dout: Tensor
    dlse: Tensor | None
    left: bool
    pairs: Tensor | None = None
    read: bool = False

    def pointers(self) -> RowPointers:
        """The arguments of the pass over rows; out and dlse are among them where it computes delta."""
        made_of = (None, None) if self.read else (self.out, self.dlse)
        return RowPointers(self.lse, self.minus_delta, *made_of)


class RowPointers(NamedTuple):
    """See `RowNumbers`."""

    LSE: Tensor
    MINUS_DELTA: Tensor
    OUT: Tensor | None
    DLSE: Tensor | None


_whole_columns: Derived[bool] = Derived()
_listed_rows: Derived[bool] = Derived()
_prepare_plans: Derived[Plan] = Derived()
_flags: Derived[Tensor] = Derived()


def rows_go_first(call: Call, by_columns: list[Component]) -> bool:
    """Whether the pass over rows runs first: every row is visited, and no tile column is split (partial results of columns
    would need memory of their own)."""
    if not call.layout.covered or not by_columns or in_pairs(call, by_columns):
        return False

    def whole_columns() -> bool:
        works = (column_work(call, component, adds_up(number, component)) for number, component in enumerate(by_columns))
        return not any(work.partials for work in works) and not any(orders_keys_by_head(call, c) for c in by_columns)

    return _whole_columns.get(by_columns[0], call.key, whole_columns, call.device)


def in_pairs(call: Call, by_columns: list[Component]) -> bool:
    """Whether columns read lse and delta as pairs. For wide heads, the extra pass that writes them costs less than computing
    them in a long loop."""
    return width_of(call.q.shape[3]) > PAIRED_WIDTH and any(component.grows for component in by_columns)


def rows_are_listed(call: Call) -> bool:
    """Whether the work over rows is listed; its partial results then take the memory that delta would."""
    components = call.layout.components
    if not components or any(component.dynamic for component in components):
        return False

    def any_list() -> bool:
        return any(row_work(call, component).items is not None for component in components)

    return _listed_rows.get(components[0], call.key, any_list, call.device)


def row_work(call: Call, component: Component) -> Work:
    everything, whole = call.layout.covered and component.covers, row_kind(component) == "blocks"
    return work_of(component, "rows", 1, call.q.shape[0], everything=everything, whole=whole)


def column_work(call: Call, component: Component, adding: bool) -> Work:
    return work_of(component, "columns", call.repeat, call.q.shape[0], everything=not adding, in_two=steady(component))


def steady(component: Component) -> bool:
    """Whether tile rows keep their length, relative to an even division of the work, at any sequence length, so that the choice
    of kernel may depend on it. Rows that grow with the length and gathered ones do not."""
    return not component.grows and component.q_index is None and component.k_index is None


def adds_up(number: int, component: Component) -> bool:
    """Whether a component adds its columns to earlier ones: all but the first do, and the first where some keys have no place
    in its order."""
    return number > 0 or not component.all_keys


def orders_keys_by_head(call: Call, component: Component) -> bool:
    """Whether heads that have a key head in common order its keys each in their own way."""
    return component.k_index is not None and component.k_index.dim() == 2 and call.repeat > 1


class Workspace:
    """Hands out float32 memory from a contiguous tensor that is not written yet, and allocates more once that is used up."""

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

    def rest(self) -> Workspace:
        """What is not taken; what is taken from it does not count here."""
        return Workspace(self.x, self.used)


def prepare(call: Call, numbers: RowNumbers) -> None:
    """Writes -delta [B, H, Tq]."""
    out, dout, dlse = numbers.out, numbers.dout, numbers.dlse
    B, H, Tq, D = out.shape

    def planned() -> Plan:
        (o_b, o_h, o_t, _), (do_b, do_h, do_t, _) = out.stride(), dout.stride()
        strides = {"o_b": o_b, "o_h": o_h, "o_t": o_t, "do_b": do_b, "do_h": do_h, "do_t": do_t}
        tile_rows = -(-Tq // PREPARED_AT_ONCE)
        sizes = {"q_len": Tq, "heads": H, "tile_rows": tile_rows, "D": D, "BD": width_of(D), "BM": PREPARED_AT_ONCE}
        return Plan(prepare_rows, tile_rows * B * H, strides | sizes | {"ALIGN": alignment(D, out, dout)}, SMALL)

    components = call.layout.components
    key = call.key, dout.stride(), out.stride(), dlse is None, numbers.pairs is None
    plan = _prepare_plans.get(components[0], key, planned, call.device) if components else planned()
    plan(out, dout, numbers.lse, dlse, numbers.minus_delta, numbers.pairs)


def sum_of_splits(side: str, call: Call, component: Component, work: Work, x: Tensor, merging: bool) -> Plan:
    """The launch that adds up the partial results of a gradient x [B, H or Hkv, T, D] of "rows" or "columns"."""
    c, rows, (B, _, length, D), (x_b, x_h, x_t, _) = component, side == "rows", x.shape, x.stride()
    index, start, block = (c.q_index, c.q_start, c.block_q) if rows else (c.k_index, c.k_start, c.block_k)
    return Plan(add_splits, work.split_rows * B * (block // SPLIT_ROWS), {
        "x_b": x_b, "x_h": x_h, "x_t": x_t, "index_stride": index_stride(index), "x_len": length, "x_start": start, "batch": B,
        "batch_groups": c.batch_groups, "D": D, "BD": width_of(D), "B": block, "BX": SPLIT_ROWS,
        "REPEAT": 1 if rows else call.repeat, "MERGE": merging, "ALIGN": alignment(D, x),
    }, SMALL)  # fmt: skip


def kept_as(dk: Tensor, lse: Tensor) -> Tensor:
    """A tensor of the dtype that partial results of columns are stored in."""
    return dk if width_of(dk.shape[3]) <= PAIRED_WIDTH else lse


def flags_of(work: Work, call: Call, component: Component) -> Tensor | None:
    """[flags] int32 for halved tile columns, 0 until the first half is written; None where no column is halved."""
    if not work.in_two or work.items is None:
        return None
    if not work.flags:
        return component.group
    device, count = call.device, work.flags * call.q.shape[0]
    if capturing(device):
        return torch.zeros(count, dtype=torch.int32, device=device)  # the graph's own, wherever it is replayed
    # Every launch leaves them at 0, and launches on one stream come one after another.
    key = (count, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
    return _flags.get(component, key, lambda: torch.zeros(count, dtype=torch.int32, device=device), device)


class BiasSums:
    """ds summed over each visited tile, then over the tiles of a bias block and over the batch.

    Attributes:
        tiles: [B, H, query tiles, key tiles] float32, whole bias blocks of tiles.
        first: place of the first query tile among them.
        a, b: query tiles and key tiles a block.
    """

    def __init__(self, call: Call, bias: Tensor):
        component, block, self.bias = call.layout.components[0], call.options.bias_block, bias
        self.a, self.b = a, b = block // component.block_q, block // component.block_k
        self.first = call.numbers(component)["bias_first"] // component.block_q
        rows = max(bias.shape[1] * a, self.first + component.q_blocks)
        rows, columns = -(-rows // a) * a, max(bias.shape[2], -(-component.k_blocks // b)) * b
        self.tiles = torch.zeros((*call.q.shape[:2], rows, columns), dtype=torch.float32, device=call.q.device)

    def reduced(self) -> Tensor:
        """The gradient of the bias, in its shape."""
        B, H, rows, columns = self.tiles.shape
        blocks = self.tiles.view(B, H, rows // self.a, self.a, columns // self.b, self.b).sum((0, 3, 5))
        blocks = blocks[:, : self.bias.shape[1], : self.bias.shape[2]]
        return blocks.sum(0, keepdim=True) if self.bias.shape[0] == 1 and H > 1 else blocks.contiguous()
