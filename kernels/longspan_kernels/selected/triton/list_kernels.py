"""Lists the queries of each key block: by counting, or by torch's sort with a kernel before and after it.

Triton is imported here: import this file lazily.

Counting: entries of a head are cut into chunks, COUNTS [rows, chunks, nb + 1] says how many entries of a chunk are in each list
(the last is for none), and an entry's place is the start of its list, those in chunks before, and those before it in its chunk.
It takes five launches where the sort takes some fourteen, and no atomic operations; but its time grows with the entries faster.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.launch.launcher import SMALL, as_contiguous, from_16_bytes, on_its_device, run_kernel

ENTRIES = 1024  # a program
CHUNK = 256  # entries
COMPARED = 32  # with as many others at a time
CHUNKS, LISTS = 128, 16  # that a program sums at a time
SCANNED = 2048  # lists that one program numbers at a time
MOST_COUNTED = 1 << 19  # entries; more are sorted, as counting takes a GPU 50 ns for each chunk and kernel
MOST_COUNTS = 16 << 20  # 64 MiB
VARYING = ["length", "heads", "blocks", "entries", "lists", "narrowed", "chunks"]


@triton.jit
def lists_of(PICKS, LENGTHS, row, entry, length, heads, blocks, N: tl.constexpr):
    """The lists of a head's entries: `blocks` for none, one more for entries that do not exist."""
    exists = entry < length * N
    pick = tl.load(PICKS + row.to(tl.int64) * (length * N) + entry, mask=exists, other=-1)
    tokens = length
    if LENGTHS is not None:
        tokens = tl.minimum(tl.load(LENGTHS + row // heads), length).to(tl.int32)  # before numbers of 64 bits are cut
    listed = (pick >= 0) & (pick < blocks) & (entry // N < tokens)
    return tl.where(exists, tl.where(listed, pick, blocks), blocks + 1)


@triton.jit(do_not_specialize=VARYING)
def count_entries(
    PICKS,
    LENGTHS,
    COUNTS,
    length: tl.int32,
    heads: tl.int32,
    blocks: tl.int32,
    chunks: tl.int32,
    N: tl.constexpr,
    BE: tl.constexpr,
    BJ: tl.constexpr,
):
    """COUNTS of a chunk, which hold 0: all entries of a list write the same number."""
    pid = tl.program_id(0)
    row = pid // chunks
    first = pid % chunks * BE
    mine = lists_of(PICKS, LENGTHS, row, first + tl.arange(0, BE), length, heads, blocks, N)
    count = tl.zeros([BE], tl.int32)
    for start in tl.range(0, BE, BJ):
        others = lists_of(PICKS, LENGTHS, row, first + start + tl.arange(0, BJ), length, heads, blocks, N)
        count += tl.sum((mine[:, None] == others[None, :]).to(tl.int32), 1)
    tl.store(COUNTS + pid.to(tl.int64) * (blocks + 1) + mine, count, mask=mine <= blocks)


@triton.jit(do_not_specialize=VARYING)
def sum_chunks(COUNTS, TOTALS, blocks: tl.int32, chunks: tl.int32, BC: tl.constexpr, BL: tl.constexpr):
    """COUNTS become those of all chunks before; TOTALS [rows, nb + 1] are those of all chunks."""
    pid = tl.program_id(0)
    tiles = (blocks + BL) // BL
    row = pid // tiles
    number = pid % tiles * BL + tl.arange(0, BL)
    total = tl.zeros([BL], tl.int32)
    for start in tl.range(0, chunks, BC):
        chunk = start + tl.arange(0, BC)
        at = (row * chunks + chunk).to(tl.int64)[:, None] * (blocks + 1) + number[None, :]
        mask = (chunk < chunks)[:, None] & (number <= blocks)[None, :]
        count = tl.load(COUNTS + at, mask=mask, other=0)
        tl.store(COUNTS + at, total[None, :] + tl.cumsum(count, 0) - count, mask=mask)
        total += tl.sum(count, 0)
    tl.store(TOTALS + row * (blocks + 1) + number, total, mask=number <= blocks)


@triton.jit(do_not_specialize=VARYING)
def start_counted(TOTALS, START, blocks: tl.int32, lists: tl.int32, entries: tl.int32, BL: tl.constexpr):
    """TOTALS, `entries` of them, become the start of each list; START [lists + 1] is the same without the lists for none, which
    come after all others. One program."""
    before = 0
    none_before = 0
    for first in tl.range(0, entries, BL):
        at = first + tl.arange(0, BL)
        total = tl.load(TOTALS + at, mask=at < entries, other=0)
        of_none = at % (blocks + 1) == blocks
        listed, none = tl.where(of_none, 0, total), tl.where(of_none, total, 0)
        start = before + tl.cumsum(listed, 0) - listed
        tl.store(START + at - at // (blocks + 1), start, mask=(at < entries) & (of_none == 0))
        tl.store(TOTALS + at, tl.where(of_none, none_before + tl.cumsum(none, 0) - none, start), mask=at < entries)
        before += tl.sum(listed, 0)
        none_before += tl.sum(none, 0)
    tl.store(START + lists, before)


@triton.jit(do_not_specialize=VARYING)
def place_entries(
    PICKS,
    LENGTHS,
    COUNTS,
    STARTS,
    START,
    ORDER,
    length: tl.int32,
    heads: tl.int32,
    blocks: tl.int32,
    lists: tl.int32,
    chunks: tl.int32,
    N: tl.constexpr,
    BE: tl.constexpr,
    BJ: tl.constexpr,
):
    """ORDER of all entries, those of a chunk a program."""
    pid = tl.program_id(0)
    row = pid // chunks
    first = pid % chunks * BE
    offs = tl.arange(0, BE)
    mine = lists_of(PICKS, LENGTHS, row, first + offs, length, heads, blocks, N)
    before = tl.zeros([BE], tl.int32)
    for start in tl.range(0, BE, BJ):
        other = start + tl.arange(0, BJ)
        others = lists_of(PICKS, LENGTHS, row, first + other, length, heads, blocks, N)
        same = (mine[:, None] == others[None, :]) & (other[None, :] < offs[:, None])
        before += tl.sum(same.to(tl.int32), 1)
    there = mine <= blocks
    place = before + tl.load(COUNTS + pid.to(tl.int64) * (blocks + 1) + mine, mask=there, other=0)
    place += tl.load(STARTS + row * (blocks + 1) + mine, mask=there, other=0)
    place += tl.where(mine == blocks, tl.load(START + lists), 0)
    tl.store(ORDER + place, row * (length * N) + first + offs, mask=there)


@triton.jit(do_not_specialize=VARYING)
def number_lists(
    PICKS,
    LENGTHS,
    OF,
    length: tl.int32,
    heads: tl.int32,
    blocks: tl.int32,
    entries: tl.int32,
    lists: tl.int32,
    N: tl.constexpr,
    BE: tl.constexpr,
):
    """OF [entries]: the list of each pick, `lists` for none."""
    entry = tl.program_id(0) * BE + tl.arange(0, BE)
    exists = entry < entries
    row = entry // N  # of all heads
    head = row // length
    pick = tl.load(PICKS + entry, mask=exists, other=-1)
    none = (pick < 0) | (pick >= blocks)
    if LENGTHS is not None:
        tokens = tl.load(LENGTHS + head // heads, mask=exists, other=0)
        none = none | (row % length >= tokens)
    of = tl.where(none, lists, head * blocks + pick)
    tl.store(OF + entry, of.to(OF.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=VARYING)
def start_lists(
    OF, ORDER, NARROW, START, entries: tl.int32, lists: tl.int32, narrowed: tl.int32, STEPS: tl.constexpr, BE: tl.constexpr
):
    """NARROW [entries] is ORDER in 32 bits; START [lists + 1] the first place of OF, which is sorted, that holds each list or a
    later one, by halving the places STEPS times. The first `narrowed` programs do the one."""
    pid = tl.program_id(0)
    if pid < narrowed:
        entry = pid * BE + tl.arange(0, BE)
        tl.store(NARROW + entry, tl.load(ORDER + entry, mask=entry < entries, other=0).to(tl.int32), mask=entry < entries)
    else:
        wanted = (pid - narrowed) * BE + tl.arange(0, BE)
        low, high = tl.zeros([BE], tl.int32), tl.zeros([BE], tl.int32) + entries
        for _ in tl.range(0, STEPS):
            middle = low + (high - low) // 2
            searching = low < high
            later = tl.load(OF + middle, mask=searching, other=0).to(tl.int32) < wanted
            low = tl.where(searching & later, middle + 1, low)
            high = tl.where(searching & ~later, middle, high)
        tl.store(START + wanted, low, mask=wanted <= lists)


@on_its_device
def triton_queries_of_blocks(picks: Tensor, lengths: Tensor | None, blocks: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `lists.queries_of_blocks`; where entries are sorted, as numbers of `kind`."""
    B, P, T, n = picks.shape
    device, entries, lists = picks.device, picks.numel(), B * P * blocks
    picks = from_16_bytes(picks.contiguous())
    if entries <= MOST_COUNTED and B * P * -(-T * n // CHUNK) * (blocks + 1) <= MOST_COUNTS:
        return _counted(picks, as_contiguous(lengths), blocks)
    of = torch.empty(entries, dtype=kind, device=device)
    programs = -(-entries // ENTRIES)
    numbers = {"length": T, "heads": P, "blocks": blocks, "entries": entries, "lists": lists, "N": n, "BE": ENTRIES}
    run_kernel(number_lists, programs, SMALL, picks, as_contiguous(lengths), of, **numbers)
    of, order = torch.sort(of, stable=True)
    narrow = torch.empty(entries, dtype=torch.int32, device=device)
    start = torch.empty(lists + 1, dtype=torch.int32, device=device)
    searched = {"entries": entries, "lists": lists, "narrowed": programs, "STEPS": 32, "BE": ENTRIES}
    run_kernel(start_lists, programs + lists // ENTRIES + 1, SMALL, of, order, narrow, start, **searched)
    return narrow, start


def _counted(picks: Tensor, lengths: Tensor | None, blocks: int) -> tuple[Tensor, Tensor]:
    (B, P, T, n), device = picks.shape, picks.device
    rows, lists, chunks = B * P, B * P * blocks, -(-T * n // CHUNK)
    counts = torch.zeros(rows * chunks * (blocks + 1), dtype=torch.int32, device=device)
    starts = torch.empty(rows * (blocks + 1), dtype=torch.int32, device=device)
    order = torch.empty(picks.numel(), dtype=torch.int32, device=device)
    start = torch.empty(lists + 1, dtype=torch.int32, device=device)
    of = {"length": T, "heads": P, "blocks": blocks, "chunks": chunks, "N": n, "BE": CHUNK, "BJ": COMPARED}
    run_kernel(count_entries, rows * chunks, SMALL, picks, lengths, counts, **of)
    tiles = blocks // LISTS + 1
    run_kernel(sum_chunks, rows * tiles, SMALL, counts, starts, blocks=blocks, chunks=chunks, BC=CHUNKS, BL=LISTS)
    run_kernel(start_counted, 1, SMALL, starts, start, blocks=blocks, lists=lists, entries=rows * (blocks + 1), BL=SCANNED)
    run_kernel(place_entries, rows * chunks, SMALL, picks, lengths, counts, starts, start, order, **of, lists=lists)
    return order, start
