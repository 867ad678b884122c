"""The forward pass in Triton: one launch a component, plus a merge of split tile rows where a component has any.

One program attends from the queries of one tile row of a component to the key tiles its list names: full tiles, band tiles and
bit-masked tiles in loops of their own, so that only partial tiles pay for a mask. A tile row that is too long for one program
is split, and a second kernel merges the partial results. Scores are in base 2: exp2(s * scale * log2(e) - m).

Legend: BM x BN the tile, BD the head width D rounded up to a power of two. Triton is imported here: import this file lazily.
"""

# ruff: noqa: SIM102 (compile-time branches stay statements)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.args import Options
from longspan_kernels.block_sparse.cache import Derived
from longspan_kernels.block_sparse.layout import Component, Layout
from longspan_kernels.block_sparse.triton.backward import compile_first, plan_call
from longspan_kernels.block_sparse.triton.call import Call, Launches, index_stride, launches_over, streamed, strides_of
from longspan_kernels.block_sparse.triton.common import (
    LN2,
    LOG2E,
    MIXED,
    READ_AHEAD,
    VARYING,
    Side,
    Stream,
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
    streamed_head,
    streamed_tile,
    tokens_of,
    wide,
    within,
    work_item,
)
from longspan_kernels.block_sparse.triton.masks import Given, dropout_keeps, dropout_rows, kept, masked
from longspan_kernels.block_sparse.triton.schedule import work_of
from longspan_kernels.launch.launcher import SMALL, SPLIT_ROWS, Plan, alignment, on_its_device, width_of
from longspan_kernels.launch.ops import output_like


@triton.jit
def attend(
    acc, l_i, m_i, q, i, drawn, k_tiles, v_tiles, keys, visits, entries, begin, end, given, BIAS, bias_at, scale2, threshold,
    C: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Adds the entries [begin, end) of a tile row to its running output, sum of weights and maximum (acc, l_i, m_i)."""
    PRECISION: tl.constexpr = "ieee" if C.EXACT else "tf32"
    upcoming, AHEAD, DETAILS = begin_entries(visits, begin, end, entries.tile, MODE)
    for e in tl.range(begin, end):
        tile, detail, upcoming, AHEAD, DETAILS = next_entry(upcoming, AHEAD, DETAILS, e, begin, end, C, MODE)
        base, token = tokens_of(keys, tile, C.BN, C.K_STEPPED)
        k_ok = within(token, given.stop)
        k = streamed_tile(k_tiles, tile, base, token, k_ok, keys, C.BN, C.K_STEPPED, C, MODE)
        s = scores_of(q, tl.trans(k), C.EXACT)  # (BM, BN)
        if BIAS is not None:
            s = s * scale2 + tl.load(BIAS + bias_at + (tile * C.BN) // C.BIAS_BLOCK) * LOG2E
        s = masked(s, float("-inf"), e, entries, detail, visits.MASKS, C, MODE, False)
        s = kept(s, float("-inf"), i, token, token, k_ok, given, C, False)
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
        v = streamed_tile(v_tiles, tile, base, token, k_ok, keys, C.BN, C.K_STEPPED, C, MODE)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m_i = new
    return acc, l_i, m_i


@triton.jit
def store_rows(
    OUT, LSE, out, lse2, token, base, ok, stride, side, merge, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr,
    RUN: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    """Writes rows, or merges them into what earlier components wrote. `lse2` is in base 2."""
    offs_d = tl.arange(0, BD)
    at = addresses(OUT, token, base, stride, side, offs_d, B, RUN)
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
    b, h, tile_row, partial, u, served, record = work_item(visits, heads, tile_rows, batch, batch_groups, C)
    entries = entries_of(record, served)
    offs_m = tl.arange(0, BM)
    offs_d = tl.arange(0, BD)
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    kv_head = h // C.REPEAT
    Q = head_of(Q, b, h, q_strides, C)
    K, V = streamed_head(K, b, kv_head, k_strides, C), streamed_head(V, b, kv_head, v_strides, C)
    q_stop, k_stop = ends(limits, b, q_len, k_len)
    BIAS = limits.BIAS
    EXCLUDED = None if limits.EXCLUDED is None else limits.EXCLUDED + b64 * C.EXCLUSIONS * k_len
    SEGMENTS = None if limits.K_SEGMENTS is None else limits.K_SEGMENTS + b64 * k_len
    queries = Side(visits.Q_INDEX, q_index_stride, u, q_start, step, q_per)
    keys = Side(visits.K_INDEX, k_index_stride, u, k_start, step, k_per)
    base, row = tokens_of(queries, tile_row, BM, C.Q_STEPPED)
    row_ok = within(row, q_stop)
    q = load_tile(Q, row, base, row_ok, wide(q_strides.t), queries, offs_d, C.D, BM, C.Q_STEPPED, True)  # (BM, BD)
    i = row + (k_len - q_len)
    drawn = dropout_rows(limits.SEED, b * heads + h, i) if C.DROPOUT else None
    segments = None if limits.Q_SEGMENTS is None else tl.load(limits.Q_SEGMENTS + b64 * q_len + row, mask=row_ok, other=0)
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
        if entries.stop <= entries.first:
            # Told here that its loop has entries, the compiler keeps no second set of sums for when it is skipped.
            store_rows(
                out_at, lse_at, acc, m_i, row, base, within(row, limit), o_stride, queries, merge, C.D, BD, BM, C.Q_STEPPED,
                C.MERGE,
            )  # fmt: skip
            return
    given = Given(EXCLUDED, SEGMENTS, segments, k_len, k_stop)
    k_tiles = Stream(K, wide(k_strides.t), b, kv_head)
    v_tiles = Stream(V, wide(v_strides.t), b, kv_head)
    for mode in tl.static_range(4):
        if C.MODES[mode]:
            begin, end = part_of(mode, entries)
            acc, l_i, m_i = attend(
                acc, l_i, m_i, q, i, drawn, k_tiles, v_tiles, keys, visits, entries, begin, end, given, BIAS, bias_at,
                factors.scale2, threshold, C, mode,
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
    store_rows(out_at, lse_at, out, lse2, row, base, ok, o_stride, queries, merge, C.D, BD, BM, C.Q_STEPPED, C.MERGE)


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
    queries = Side(Q_INDEX, q_index_stride, u, q_start, 1, 1)
    base, row = tokens_of(queries, tile_row * PARTS + part, BX, 0)
    merge = tl.load(MERGES + h) if MERGE else 0
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    ok = within(row, q_len)
    out_at = OUT + tl.multiple_of(b64 * o_b + h64 * o_h, ALIGN)
    store_rows(
        out_at, LSE + (b64 * heads + h64) * q_len, acc / l_i[:, None], lse2, row, base, ok, o_t, queries, merge, D, BD, BX, 0,
        MERGE,
    )  # fmt: skip


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


_planned: Derived[Launches] = Derived()


def _component(call: Call, component: Component, out: Tensor, lse: Tensor, merging: bool) -> None:
    launches = _planned.get(component, (merging, call.key), lambda: _plan(call, component, out, merging), call.device)
    main = launches.main
    # Listed rows may be split at one length and not at another: the kernel is the same, and takes any address for no partials.
    partial = partial_lse = None if launches.work.items is None else lse
    if launches.partial is not None:
        partial = torch.empty(launches.partial, dtype=torch.float32, device=out.device)
        partial_lse = torch.empty(launches.partial[:2], dtype=torch.float32, device=out.device)
    keys, _ = streamed((call.k, call.v), component, "k", main.choice.by_tma, call)
    main(call.q, *keys, out, lse, partial, partial_lse, launches.visits, call.limits(component))
    for merge in launches.sums:
        merge(out, lse, partial, partial_lse, launches.work.splits, component.group, component.merge, component.q_index)


def _plan(call: Call, component: Component, out: Tensor, merging: bool) -> Launches:
    B, H, Tq, D = call.q.shape
    work = work_of(component, "rows", 1, B, everything=call.layout.covered and component.covers)
    of_out = {"o_strides": strides_of(out)}
    launches = launches_over("rows", forward_rows, "forward", call, component, work, (call.k, call.v), (out,), merging, of_out)
    if work.split_rows:
        o_b, o_h, o_t = strides_of(out)
        launches.sums.append(Plan(merge_splits, work.split_rows * B * (component.block_q // SPLIT_ROWS), {
            "o_b": o_b, "o_h": o_h, "o_t": o_t, "q_index_stride": index_stride(component.q_index), "q_len": Tq,
            "q_start": component.q_start, "batch": B, "heads": H, "batch_groups": component.batch_groups,
            "D": D, "BD": width_of(D), "BM": component.block_q, "BX": SPLIT_ROWS, "MERGE": merging, "ALIGN": alignment(D, out),
        }, SMALL))  # fmt: skip
    return launches
