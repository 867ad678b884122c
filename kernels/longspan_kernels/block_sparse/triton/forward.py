"""The forward pass in Triton: one launch a component, plus a merge of split tile rows where a component has any.

One program attends from the queries of one tile row of a component to the key tiles its list names: full tiles, band tiles and
bit-masked tiles in loops of their own, so that only partial tiles pay for a mask. A tile row that is too long for one program
is split, and a second kernel merges the partial results. Scores are in base 2: exp2(s * scale * log2(e) - m).

Legend: BM x BN the tile, BD the head width D rounded up to a power of two. Triton is imported here: import this file lazily.
"""

# ruff: noqa: SIM102 (compile-time branches stay statements)
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.layout import Component, Layout
from longspan_kernels.block_sparse.triton.backward import compile_first, plan_call
from longspan_kernels.block_sparse.triton.call import (
    Call,
    Visits,
    index_stride,
    streamed,
    strides_of,
    visits_of,
)
from longspan_kernels.block_sparse.triton.common import (
    LN2,
    LOG2E,
    MIXED,
    READ_AHEAD,
    VARYING,
    addresses,
    begin_entries,
    ends,
    entries_of,
    head_of,
    interprets_bfloat16,
    load_tile,
    next_entry,
    part_of,
    quick_log2,
    scores_of,
    split_of,
    streamed_tile,
    tokens_of,
    wide,
    within,
    work_item,
)
from longspan_kernels.block_sparse.triton.configs import launch_of
from longspan_kernels.block_sparse.triton.masks import dropout_keeps, dropout_rows, kept, masked
from longspan_kernels.block_sparse.triton.schedule import Work, work_of
from longspan_kernels.launch.launcher import (
    SMALL,
    SPLIT_ROWS,
    Plan,
    alignment,
    on_its_device,
    output_like,
    without_tma,
)


@triton.jit
def attend(
    acc, l_i, m_i, q, i, drawn, segments, K, V, EXCLUDED, K_SEGMENTS, BIAS, visits, b, kv_head, u, first, masked_from,
    bits_from, stop, first_tile, k_stride, v_stride, index_stride, k_len, k_start, k_stop, step, k_per, scale2, threshold,
    bias_at, C: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Adds the entries [first, stop) of a tile row to its running output, sum of weights and maximum (acc, l_i, m_i)."""
    INDEXED: tl.constexpr = visits.K_INDEX is not None
    PRECISION: tl.constexpr = "ieee" if C.EXACT else "tf32"
    upcoming, AHEAD, DETAILS = begin_entries(visits, first, stop, first_tile, MODE)
    for e in tl.range(first, stop):
        tile, detail, upcoming, AHEAD, DETAILS = next_entry(upcoming, AHEAD, DETAILS, e, first, stop, C, MODE)
        base, token = tokens_of(visits.K_INDEX, u, index_stride, tile, k_start, step, k_per, C.BN, C.K_STEPPED)
        k_ok = within(token, k_stop)
        k = streamed_tile(
            K, b, kv_head, tile, base, token, k_ok, k_start, k_stride, step, k_per, C.BN, INDEXED, C.K_STEPPED, C, MODE
        )
        s = scores_of(q, tl.trans(k), C.EXACT)  # (BM, BN)
        if BIAS is not None:
            s = s * scale2 + tl.load(BIAS + bias_at + (tile * C.BN) // C.BIAS_BLOCK) * LOG2E
        s = masked(s, float("-inf"), e, masked_from, bits_from, detail, visits.MASKS, C, MODE, False)
        s = kept(s, float("-inf"), i, token, token, k_ok, segments, K_SEGMENTS, EXCLUDED, k_len, C, False)
        if BIAS is not None:
            new = tl.maximum(m_i, tl.max(s, 1))
            origin = tl.where(new == float("-inf"), 0.0, new)
            p = tl.exp2(s - origin[:, None])
            shrink = tl.exp2(m_i - origin)
        elif C.EXACT:
            # The maximum before scaling: its product with the scale is rounded, and for scores near 10**10 by hundreds, which
            # a fused multiply-add would leave in every exponent.
            new = tl.maximum(m_i, tl.max(s, 1))
            origin = tl.where(new == float("-inf"), 0.0, new)
            p = tl.exp2((s - origin[:, None]) * scale2)
            shrink = tl.exp2((m_i - origin) * scale2)
        else:
            new = tl.maximum(m_i, tl.max(s, 1) * scale2)
            origin = tl.where(new == float("-inf"), 0.0, new)
            p = tl.exp2(s * scale2 - origin[:, None])
            shrink = tl.exp2(m_i - origin)
        l_i = l_i * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if C.DROPOUT:
            p = tl.where(dropout_keeps(drawn[:, None], token[None, :], threshold), p, 0.0)
        v = streamed_tile(
            V, b, kv_head, tile, base, token, k_ok, k_start, v_stride, step, k_per, C.BN, INDEXED, C.K_STEPPED, C, MODE
        )
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m_i = new
    return acc, l_i, m_i


@triton.jit
def store_rows(
    OUT,
    LSE,
    out,
    lse2,
    token,
    base,
    ok,
    out_stride,
    step,
    merge,
    D: tl.constexpr,
    BD: tl.constexpr,
    B: tl.constexpr,
    MERGE: tl.constexpr,
    INDEXED: tl.constexpr,
    STEPPED: tl.constexpr,
):
    """Writes rows, or merges them into what earlier components wrote. `lse2` is in base 2."""
    offs_d = tl.arange(0, BD)
    at = addresses(OUT, token, base, out_stride, step, offs_d, B, INDEXED, STEPPED)
    keep = ok[:, None] & (offs_d < D)[None, :]
    if MERGE:
        if merge != 0:
            old = tl.load(LSE + token, mask=ok, other=float("-inf")) * LOG2E
            highest = tl.maximum(old, lse2)
            origin = tl.where(highest == float("-inf"), 0.0, highest)
            theirs = tl.exp2(old - origin)
            ours = tl.exp2(lse2 - origin)
            both = theirs + ours
            inverse = 1.0 / tl.where(both == 0.0, 1.0, both)
            before = tl.load(at, mask=keep, other=0.0).to(tl.float32)
            out = out * (ours * inverse)[:, None] + before * (theirs * inverse)[:, None]
            lse2 = tl.where(highest == float("-inf"), highest, origin + tl.log2(tl.where(both == 0.0, 1.0, both)))
    tl.store(at, out.to(OUT.dtype.element_ty), mask=keep)
    tl.store(LSE + token, lse2 * LN2, mask=ok)


@triton.jit(do_not_specialize=VARYING)
def forward_rows(
    Q, K, V, OUT, LSE, PARTIAL, PARTIAL_LSE, visits, limits, q_strides, k_strides, v_strides, o_strides, factors,
    q_len: tl.int32, k_len: tl.int32, q_start: tl.int32, k_start: tl.int32, tile_rows: tl.int32, batch: tl.int32,
    heads: tl.int32, batch_groups: tl.int32, threshold: tl.int32, bias_first: tl.int32, bias_h: tl.int64, bias_row: tl.int64,
    step: tl.int32, q_per: tl.int32, k_per: tl.int32, q_index_stride: tl.int64, k_index_stride: tl.int64, C: tl.constexpr,
):  # fmt: skip
    """Writes out and lse of the queries of one tile row, or of a part of its entries as a partial result."""
    BM: tl.constexpr = C.BM
    BD: tl.constexpr = C.BD
    INDEXED: tl.constexpr = visits.Q_INDEX is not None
    b, h, tile_row, partial, u, served, entries = work_item(visits, heads, tile_rows, batch, batch_groups, C)
    first, masked_from, bits_from, stop, first_tile = entries_of(entries, served)
    offs_m = tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    kv_head = h // C.REPEAT
    Q = head_of(Q, b, h, q_strides, C)
    if not C.BY_TMA:
        K = head_of(K, b, kv_head, k_strides, C)
        V = head_of(V, b, kv_head, v_strides, C)
    q_stop, k_stop = ends(limits, b, q_len, k_len)
    EXCLUDED, K_SEGMENTS, BIAS = limits.EXCLUDED, limits.K_SEGMENTS, limits.BIAS
    if EXCLUDED is not None:
        EXCLUDED += b64 * C.EXCLUSIONS * k_len
    if K_SEGMENTS is not None:
        K_SEGMENTS += b64 * k_len
    base, row = tokens_of(visits.Q_INDEX, u, q_index_stride, tile_row, q_start, step, q_per, BM, C.Q_STEPPED)
    row_ok = within(row, q_stop)
    q = load_tile(Q, row, base, row_ok, wide(q_strides.t), step, offs_d, C.D, BD, BM, True, INDEXED, C.Q_STEPPED)  # (BM, BD)
    i = row + (k_len - q_len)
    drawn = None
    if C.DROPOUT:
        drawn = dropout_rows(limits.SEED, b * heads + h, i)
    segments = None
    if limits.Q_SEGMENTS is not None:
        segments = tl.load(limits.Q_SEGMENTS + b64 * q_len + row, mask=row_ok, other=0)
    bias_at = tl.zeros([], tl.int64)
    if BIAS is not None:
        # Tiles lie inside bias blocks, so the first place of this one stands for all.
        bias_at = h64 * bias_h + (tile_row * BM + bias_first) // C.BIAS_BLOCK * bias_row
    merge = tl.load(visits.MERGE + h) if C.MERGE else 0
    out_at = head_of(OUT, b, h, o_strides, C)
    o_stride = wide(o_strides.t)
    lse_at = LSE + (b64 * heads + h64) * q_len
    limit = tl.where(served, q_len, 0)
    acc = tl.zeros([BM, BD], tl.float32)
    l_i = tl.zeros([BM], tl.float32)
    m_i = tl.full([BM], float("-inf"), tl.float32)
    if C.MODES[MIXED] or not (C.HAS_BANDS or C.HAS_BITS):
        if stop <= first:
            # Told here that its loop has entries, the compiler keeps no second set of sums for when it is skipped.
            store_rows(
                out_at,
                lse_at,
                acc,
                m_i,
                row,
                base,
                within(row, limit),
                o_stride,
                step,
                merge,
                C.D,
                BD,
                BM,
                C.MERGE,
                INDEXED,
                C.Q_STEPPED,
            )
            return
    for mode in tl.static_range(4):
        if C.MODES[mode]:
            begin, end = part_of(mode, first, masked_from, bits_from, stop)
            acc, l_i, m_i = attend(
                acc, l_i, m_i, q, i, drawn, segments, K, V, EXCLUDED, K_SEGMENTS, BIAS, visits, b, kv_head, u, begin,
                masked_from, bits_from, end, first_tile, wide(k_strides.t), wide(v_strides.t), k_index_stride, k_len, k_start,
                k_stop, step, k_per, factors.scale2, threshold, bias_at, C, mode,
            )  # fmt: skip
    # A row without keys, and one past the length, whose scores were computed from zeros.
    alive = row_ok & (l_i > 0.0)
    l_i = tl.where(alive, l_i, 1.0)
    if C.EXACT and BIAS is None:
        m_i *= factors.scale2
    if C.EXACT:
        digits = tl.log2(l_i)
        inverse = factors.inverse_keep / l_i
    else:
        digits = quick_log2(l_i)
        inverse = factors.inverse_keep * tl.exp2(-digits)
    lse2 = tl.where(alive, m_i + digits, float("-inf"))
    out = acc * tl.where(alive, inverse, 0.0)[:, None]
    if PARTIAL is not None:
        if partial >= 0:
            at = partial.to(tl.int64) * BM + offs_m
            tl.store(PARTIAL + at[:, None] * BD + offs_d[None, :], out)
            tl.store(PARTIAL_LSE + at, lse2)
        limit = tl.where(partial < 0, limit, 0)
    ok = within(row, limit)
    store_rows(out_at, lse_at, out, lse2, row, base, ok, o_stride, step, merge, C.D, BD, BM, C.MERGE, INDEXED, C.Q_STEPPED)


@triton.jit(do_not_specialize=VARYING)
def merge_splits(
    OUT, LSE, PARTIAL, PARTIAL_LSE, SPLITS, GROUP, MERGES, Q_INDEX, o_b: tl.int64, o_h: tl.int64, o_t: tl.int64,
    q_index_stride: tl.int64, q_len: tl.int32, q_start: tl.int32, batch: tl.int32, heads: tl.int32,
    batch_groups: tl.int32, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BX: tl.constexpr, MERGE: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Merges the partial results of one split tile row, in their order: BX of its BM queries a program."""
    PARTS: tl.constexpr = BM // BX
    b, part, h, tile_row, first_partial, count = split_of(SPLITS, batch, PARTS)
    offs_m = part * BX + tl.arange(0, BX)
    offs_d = tl.arange(0, BD)
    acc = tl.zeros([BX, BD], tl.float32)
    l_i = tl.zeros([BX], tl.float32)
    m_i = tl.full([BX], float("-inf"), tl.float32)
    for number in tl.range(0, count, num_stages=READ_AHEAD):
        place = ((first_partial + number) * batch + b).to(tl.int64) * BM + offs_m
        lse2 = tl.load(PARTIAL_LSE + place)
        out = tl.load(PARTIAL + place[:, None] * BD + offs_d[None, :])
        new = tl.maximum(m_i, lse2)
        origin = tl.where(new == float("-inf"), 0.0, new)
        shrink = tl.exp2(m_i - origin)
        weight = tl.exp2(lse2 - origin)
        acc = acc * shrink[:, None] + out * weight[:, None]
        l_i = l_i * shrink + weight
        m_i = new
    alive = l_i > 0.0
    l_i = tl.where(alive, l_i, 1.0)
    lse2 = tl.where(alive, m_i + tl.log2(l_i), float("-inf"))
    u = (tl.load(GROUP + h) + b * batch_groups).to(tl.int64)
    base, row = tokens_of(Q_INDEX, u, q_index_stride, tile_row * PARTS + part, q_start, 1, 1, BX, False)
    merge = tl.load(MERGES + h) if MERGE else 0
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    ok = within(row, q_len)
    out_at = OUT + tl.multiple_of(b64 * o_b + h64 * o_h, ALIGN)
    store_rows(out_at, LSE + (b64 * heads + h64) * q_len, acc / l_i[:, None], lse2, row, base, ok, o_t, 1, merge, D, BD, BX,
               MERGE, Q_INDEX is not None, False)  # fmt: skip


@on_its_device
def triton_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options, backward: tuple[Layout, Layout] | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over the tiles of a layout.

    Args:
        q: [B, H, Tq, D]; k, v: [B, Hkv, Tk, D]; float16, bfloat16 or float32, any strides.
        options: with int32 lengths and a float32 bias; dropout falls on the weights (the normaliser is undropped).
        backward: the layouts of a backward pass that follows (over rows, over columns): its kernels compile with these.

    Returns:
        out [B, H, Tq, D] in q's dtype and lse [B, H, Tq] float32, natural log; 0 and -inf for a query without keys.

    Raises:
        BackendError: a dtype, width or bias that this backend does not serve.
    """
    if interprets_bfloat16(q):
        out, lse = triton_forward(q.float(), k.float(), v.float(), layout, options)
        return out.to(q.dtype), lse
    call = Call(q, k, v, layout, options)
    compile_first(call, ("forward", call.key, backward is not None), lambda: plan_call(call, backward))
    return forward_pass(call)


def forward_pass(call: Call) -> tuple[Tensor, Tensor]:
    q, layout = call.q, call.layout
    out = output_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if not layout.covered:
        out.zero_()
        lse.fill_(float("-inf"))
    for number, component in enumerate(layout.components):
        _component(call, component, out, lse, merging=number > 0 or not layout.covered)
    return out, lse


@dataclass
class _Rows:
    """The plan of the launches over one component's rows; it serves all calls of one kind."""

    work: Work
    visits: Visits
    partial: tuple[int, int, int] | None  # shape of the partial results
    main: Plan
    merge: Plan | None
    by_tma: bool


_planned: Derived[_Rows] = Derived()


def _component(call: Call, component: Component, out: Tensor, lse: Tensor, merging: bool) -> None:
    rows = _planned.get(component, (merging, call.key), lambda: _plan(call, component, out, merging), call.device)
    # Listed rows may be split at one length and not at another: the kernel is the same, and takes any address for no partials.
    partial = partial_lse = None if rows.work.items is None else lse
    if rows.partial is not None:
        partial = torch.empty(rows.partial, dtype=torch.float32, device=out.device)
        partial_lse = torch.empty(rows.partial[:2], dtype=torch.float32, device=out.device)
    keys, _ = streamed((call.k, call.v), component, "k", rows.by_tma, call)
    rows.main(call.q, *keys, out, lse, partial, partial_lse, rows.visits, call.limits(component))
    if rows.merge is not None:
        rows.merge(out, lse, partial, partial_lse, rows.work.splits, component.group, component.merge, component.q_index)


def _plan(call: Call, component: Component, out: Tensor, merging: bool) -> _Rows:
    B, H, Tq, D = call.q.shape
    work = work_of(component, "rows", 1, B, everything=call.layout.covered and component.covers)
    choice = launch_of("forward", call.q, component, call.device)
    by_tma = streamed((call.k, call.v), component, "k", choice.by_tma, call)[1]
    choice = choice if by_tma else without_tma(choice)
    lists = component.rows
    C = call.constants(component, lists, alignment(D, call.q, call.k, call.v, out), choice, merging)
    main = Plan(
        forward_rows,
        work.programs(B),
        call.sizes(component)
        | {
            "q_strides": strides_of(call.q),
            "k_strides": strides_of(call.k),
            "v_strides": strides_of(call.v),
            "o_strides": strides_of(out),
            "factors": call.factors(),
            "tile_rows": lists.start.shape[1],
            "heads": H,
            "C": C,
        },
        choice,
    )
    o_b, o_h, o_t = strides_of(out)
    merge = Plan(merge_splits, max(1, work.split_rows) * B * (component.block_q // SPLIT_ROWS), {
        "o_b": o_b, "o_h": o_h, "o_t": o_t, "q_index_stride": index_stride(component.q_index), "q_len": Tq,
        "q_start": component.q_start, "batch": B, "heads": H, "batch_groups": component.batch_groups,
        "D": D, "BD": C.BD, "BM": C.BM, "BX": SPLIT_ROWS, "MERGE": merging, "ALIGN": alignment(D, out),
    }, SMALL)  # fmt: skip
    visits = visits_of(component, "rows", work.items, work.items is not None)
    partial = (work.partials * B, component.block_q, C.BD) if work.partials else None
    return _Rows(work, visits, partial, main, merge if work.split_rows else None, by_tma)
