"""Triton kernels of the gates that queries set. Triton is imported here: import this file lazily.

Legend: BM rows (tokens of one head) at a time, BD the head width D as a power of two.
"""

# Triton adds tuples, but does not unpack into them; their types are its own.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import READ_AHEAD, interprets_bfloat16
from longspan_kernels.launch.launcher import Launch, as_contiguous, from_16_bytes, on_its_device, run_kernel, width_of
from longspan_kernels.selected.triton.call_layout import by_rows, in_units
from longspan_kernels.selected.triton.common import elements, of_row, rows_at, store_rows

ROWS = 64  # at a time
SUMMED = 1024  # rows whose gradients of weights a program adds up
GATES = tl.constexpr(3)
VARYING = ["q_b", "q_h", "length", "heads", "parts", "batch"]


@triton.jit(do_not_specialize=VARYING)
def set_gates(
    Q,
    WEIGHT,
    BIAS,
    OUT,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    length: tl.int32,
    heads: tl.int32,
    parts: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
):
    """OUT [B, H, T, GATES] of Q [B, H, T, D], WEIGHT [H, D, GATES] and BIAS [H, GATES]."""
    pid = tl.program_id(0)
    line, h = pid // parts, pid // parts % heads
    row = pid % parts * BM + tl.arange(0, BM)
    there = row < length
    at = (line // heads).to(tl.int64) * q_b + h.to(tl.int64) * q_h
    q = rows_at(Q + elements(at, D), row.to(tl.int64) * q_t, there, D, BD).to(tl.float32)
    offs_d = tl.arange(0, BD)
    for n in tl.static_range(GATES):
        weight = tl.load(WEIGHT + (h * D + offs_d) * GATES + n, mask=offs_d < D, other=0.0).to(tl.float32)
        number = tl.sum(q * weight[None, :], 1) + tl.load(BIAS + h * GATES + n).to(tl.float32)
        gate = 1.0 / (1.0 + tl.exp(-number))
        tl.store(OUT + (line.to(tl.int64) * length + row) * GATES + n, gate.to(OUT.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=VARYING)
def differentiate_gates(
    Q,
    WEIGHT,
    OUT,
    DOUT,
    A,
    B,
    C,
    DQ,
    SUMS,
    BIAS_SUMS,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    length: tl.int32,
    heads: tl.int32,
    parts: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """DQ [B, H, T, D], the sum of A, B, C of its shape and of what comes through the gates; SUMS [B * H * parts, GATES, D] and
    BIAS_SUMS [B * H * parts, GATES], what SUMMED rows give weights and biases."""
    pid = tl.program_id(0)
    line, h = pid // parts, pid // parts % heads
    offs_d = tl.arange(0, BD)
    of_weight = WEIGHT + (h * D + offs_d) * GATES
    at = (line // heads).to(tl.int64) * q_b + h.to(tl.int64) * q_h
    Q += elements(at, D)
    sums, bias_sums = (), ()
    for _ in tl.static_range(GATES):
        sums = sums + (tl.zeros([BD], tl.float32),)
        bias_sums = bias_sums + (0.0,)
    begin = pid % parts * SUMMED
    for start in tl.range(begin, tl.minimum(begin + SUMMED, length), BM):
        row = start + tl.arange(0, BM)
        there = row < length
        place = line.to(tl.int64) * length + row
        q = rows_at(Q, row.to(tl.int64) * q_t, there, D, BD).to(tl.float32)
        dq = tl.zeros([BM, BD], tl.float32)
        if A is not None:
            dq += rows_at(A, of_row(place, D), there, D, BD).to(tl.float32)
        if B is not None:
            dq += rows_at(B, of_row(place, D), there, D, BD).to(tl.float32)
        if C is not None:
            dq += rows_at(C, of_row(place, D), there, D, BD).to(tl.float32)
        more, more_bias = (), ()
        for n in tl.static_range(GATES):
            gate = tl.load(OUT + place * GATES + n, mask=there, other=0.0).to(tl.float32)
            dgate = tl.load(DOUT + place * GATES + n, mask=there, other=0.0).to(tl.float32) * gate * (1.0 - gate)
            weight = tl.load(of_weight + n, mask=offs_d < D, other=0.0).to(tl.float32)
            dq += dgate[:, None] * weight[None, :]
            more = more + (sums[n] + tl.sum(q * dgate[:, None], 0),)
            more_bias = more_bias + (bias_sums[n] + tl.sum(dgate, 0),)
        sums, bias_sums = more, more_bias
        store_rows(DQ, place, there, dq, D, BD)
    for n in tl.static_range(GATES):
        tl.store(SUMS + (pid.to(tl.int64) * GATES + n) * D + offs_d, sums[n], mask=offs_d < D)
        tl.store(BIAS_SUMS + pid * GATES + n, bias_sums[n])


@triton.jit(do_not_specialize=VARYING)
def sum_gate_parts(
    SUMS, BIAS_SUMS, DWEIGHT, DBIAS, batch: tl.int32, heads: tl.int32, parts: tl.int32, D: tl.constexpr, BD: tl.constexpr
):
    """DWEIGHT [H, D, GATES] and DBIAS [H, 1, GATES], one gate of one head a program: sums over sequences and parts in order."""
    pid = tl.program_id(0)
    h, n = pid // GATES, pid % GATES
    offs_d = tl.arange(0, BD)
    dweight = tl.zeros([BD], tl.float32)
    dbias = 0.0
    for number in tl.range(0, batch * parts, num_stages=READ_AHEAD):
        at = ((number // parts * heads + h) * parts + number % parts) * GATES + n
        dweight += tl.load(SUMS + at.to(tl.int64) * D + offs_d, mask=offs_d < D, other=0.0)
        dbias += tl.load(BIAS_SUMS + at)
    tl.store(DWEIGHT + (h * D + offs_d) * GATES + n, dweight, mask=offs_d < D)
    tl.store(DBIAS + pid, dbias)


def _numbers(q: Tensor, rows: int) -> dict:
    (_, H, T, D), (q_b, q_h, q_t) = q.shape, in_units(q)
    own = {"length": T, "heads": H, "parts": -(-T // rows), "D": D, "BD": width_of(D), "BM": ROWS}
    return {"q_b": q_b, "q_h": q_h, "q_t": q_t, **own}


@on_its_device
def triton_query_gates(q: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `gates.query_gates`."""
    if interprets_bfloat16(q):
        return triton_query_gates(q.float(), weight, bias).to(q.dtype)
    q, weight, bias = by_rows(q), as_contiguous(weight), as_contiguous(bias)
    out = torch.empty((*q.shape[:3], GATES.value), dtype=q.dtype, device=q.device)
    numbers = _numbers(q, ROWS)
    run_kernel(set_gates, numbers["parts"] * q.shape[0] * q.shape[1], Launch(4, 1), q, weight, bias, out, **numbers)
    return out


@on_its_device
def triton_query_gates_backward(
    q: Tensor, weight: Tensor, gates: Tensor, dgates: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dq with the gradients a, b, c of other readers of q, and in float32 those of the weight and the bias."""
    if interprets_bfloat16(q):
        wide = (None if x is None else x.float() for x in (a, b, c))
        dq, dweight, dbias = triton_query_gates_backward(q.float(), weight, gates.float(), dgates.float(), *wide)
        return dq.to(q.dtype), dweight, dbias
    (B, H, _, D), q = q.shape, by_rows(q)
    weight, gates, dgates = (from_16_bytes(x.contiguous()) for x in (weight, gates, dgates))
    readers = [as_contiguous(x) for x in (a, b, c)]
    numbers = _numbers(q, SUMMED)
    parts, n = numbers["parts"], GATES.value
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    sums = torch.empty((B, H, parts, n, D), dtype=torch.float32, device=q.device)
    bias_sums = torch.empty((B, H, parts, n), dtype=torch.float32, device=q.device)
    given = (q, weight, gates, dgates, *readers, dq, sums, bias_sums)
    run_kernel(differentiate_gates, parts * B * H, Launch(4, 1), *given, **numbers, SUMMED=SUMMED)
    dweight = torch.empty((H, D, n), dtype=torch.float32, device=q.device)
    dbias = torch.empty((H, 1, n), dtype=torch.float32, device=q.device)
    summed = {"batch": B, "heads": H, "parts": parts, "D": D, "BD": width_of(D)}
    run_kernel(sum_gate_parts, H * n, Launch(1, 1), sums, bias_sums, dweight, dbias, **summed)
    return dq, dweight, dbias
