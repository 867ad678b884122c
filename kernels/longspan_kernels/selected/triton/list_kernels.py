"""What comes before and after the sort that lists the queries of each key block, a kernel each. Triton is imported here: import
this file lazily.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.launch.launcher import SMALL, as_contiguous, from_16_bytes, on_its_device, run_kernel

ENTRIES = 1024  # a program
VARYING = ["length", "heads", "blocks", "entries", "lists", "narrowed"]


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
    none = pick < 0
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
    """As `lists.queries_of_blocks`, sorted as numbers of `kind`."""
    B, P, T, n = picks.shape
    device, entries, lists = picks.device, picks.numel(), B * P * blocks
    picks = from_16_bytes(picks.contiguous())
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
