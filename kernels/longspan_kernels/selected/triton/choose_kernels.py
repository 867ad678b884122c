"""Triton kernels that choose the best blocks of each query while its scores are in registers. Triton is imported here: import
this file lazily.

A chunk of candidates gives its n best, one a round, and each goes to its place among the n best so far; scores are never
written. That is some 6n operations a score on units that are not the tensor cores, so it suits a small n.

Legend: BM x BN a tile of queries x candidate blocks, BD the head width D rounded up to a power of two, N picks a query, SIZE
tokens a block, REPEAT query heads a key head, PARTS the bfloat16 numbers whose sum is one of q.
"""

# Triton adds tuples, but does not unpack into them; their types are its own.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import end_of
from longspan_kernels.block_sparse.triton.configs import SMALLEST, shared_memory
from longspan_kernels.launch.launcher import (
    SMALL,
    Launch,
    alignment,
    as_contiguous,
    capability_of,
    from_16_bytes,
    on_its_device,
    readable,
    run_kernel,
    width_of,
)

PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}  # bfloat16 numbers, 8 bits each, that hold one of a dtype
CANDIDATES = 64  # scored at a time
MEAN_PARTS = tl.constexpr(3)  # bfloat16 numbers whose sum is a float32
NOBODY = tl.constexpr(1 << 30)  # beyond every block
# A kernel compiled for one value of these serves all.
VARYING = ["q_len", "rows", "first_row", "blocks", "heads", "tile_rows", "batch", "q_b", "q_h", "s_b", "s_h", "s_t"]


@triton.jit
def placed(value, number, values, numbers, FIRST: tl.constexpr, N: tl.constexpr):
    """The N best so far, in falling order, with one more; it comes at FIRST or later. Among equals, earlier ones stay ahead."""
    new_values, new_numbers = (), ()
    for s in tl.static_range(N):
        if s < FIRST:
            new_values = new_values + (values[s],)
            new_numbers = new_numbers + (numbers[s],)
        else:
            better = value > values[s]
            ours, our_number = value, number
            if s > FIRST:
                moves = value > values[s - 1]  # what stood one place ahead comes here
                ours = tl.where(moves, values[s - 1], value)
                our_number = tl.where(moves, numbers[s - 1], number)
            new_values = new_values + (tl.where(better, ours, values[s]),)
            new_numbers = new_numbers + (tl.where(better, our_number, numbers[s]),)
    return new_values, new_numbers


@triton.jit
def with_chunk(scores, number, values, numbers, N: tl.constexpr):
    """The N best of a row so far, updated with one more chunk [BM, BN], whose candidates are numbered [BN]. NaN and -inf are
    never picked."""
    # The numbers are found by a second reduction: cheaper than to carry them through the first. Only one candidate goes at a
    # time, since others may have the same score.
    for r in tl.static_range(N):
        best = tl.max(scores, 1)
        chosen = tl.min(tl.where(scores == best[:, None], number[None, :], NOBODY), 1)
        values, numbers = placed(best, chosen, values, numbers, r, N)
        if r < N - 1:
            scores = tl.where(number[None, :] == chosen[:, None], float("-inf"), scores)
    return values, numbers


@triton.jit
def allowed(number, own, end, CAUSAL: tl.constexpr):
    """[BM, BN]: whether a query whose own block is `own` may pick these blocks, of which `end` and later are none."""
    if CAUSAL:
        keep = number[None, :] < tl.minimum(own, end)[:, None]
    else:
        keep = (number[None, :] != own[:, None]) & (number < end)[None, :]
    return keep


@triton.jit
def candidates(LENGTHS, b, base, q_len, blocks, BM: tl.constexpr, SIZE: tl.constexpr, CAUSAL: tl.constexpr):
    """(tokens of the sequence, the end of the blocks that a tile of queries from row `base` may pick)."""
    tokens = q_len
    if LENGTHS is not None:
        tokens = end_of(LENGTHS, b, q_len)
    end = tl.minimum((tokens + SIZE - 1) // SIZE, blocks)
    if CAUSAL:
        end = tl.minimum(end, (tl.minimum(base + BM, tokens) - 1) // SIZE)
    return tokens, tl.where(base < tokens, end, 0)


@triton.jit
def none_yet(BM: tl.constexpr, N: tl.constexpr):
    values, numbers = (), ()
    for _ in tl.static_range(N):
        values = values + (tl.full([BM], float("-inf"), tl.float32),)
        numbers = numbers + (tl.full([BM], -1, tl.int32),)
    return values, numbers


@triton.jit
def store_picks(OUT, numbers, own, list_row, row, rows, exists, N: tl.constexpr, OWN: tl.constexpr):
    """Picks of rows into OUT [lists, rows, OWN + N]: with OWN, their own block first."""
    place = OUT + (list_row * rows + row) * (N + OWN)
    if OWN:
        tl.store(place, own, mask=row < rows)
    for s in tl.static_range(N):
        tl.store(place + OWN + s, tl.where(exists, numbers[s], -1), mask=row < rows)


@triton.jit
def as_operand(x, INTERPRETED: tl.constexpr):
    """bfloat16 numbers in the dtype that tl.dot takes: Triton's interpreter cannot multiply bfloat16, but float32 holds the
    same numbers."""
    if INTERPRETED:
        x = x.to(tl.float32)
    return x


@triton.jit
def in_parts(x, PARTS: tl.constexpr, INTERPRETED: tl.constexpr):
    """Three bfloat16 numbers, each 2^-8 of the one before; the first PARTS of them add up to x, and no others are meant."""
    first = x.to(tl.bfloat16)
    second, third = first, first
    if PARTS > 1:
        rest = x.to(tl.float32) - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
    return as_operand(first, INTERPRETED), as_operand(second, INTERPRETED), as_operand(third, INTERPRETED)


@triton.jit
def product_of_parts(first, second, third, large, middle, small, PARTS: tl.constexpr):
    """A float32 product from tensor cores, of PARTS bfloat16 numbers by three (see `in_parts`), the smallest products first.

    Products of bfloat16 numbers are exact; those that reach the last bits of the sum are added up.
    """
    dots = tl.dot(first, small)
    if PARTS > 1:
        dots = tl.dot(second, middle, dots)
        if PARTS > 2:
            dots = tl.dot(third, large, dots)
    dots = tl.dot(first, middle, dots)
    if PARTS > 1:
        dots = tl.dot(second, large, dots)
    return tl.dot(first, large, dots)


@triton.jit(do_not_specialize=VARYING)
def choose_by_means(
    Q,
    MEANS,
    LENGTHS,
    OUT,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    q_len: tl.int32,
    blocks: tl.int32,
    heads: tl.int32,
    tile_rows: tl.int32,
    batch: tl.int32,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    REPEAT: tl.constexpr,
    PARTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    OWN: tl.constexpr,
    ALIGN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Picks by the dot of a query with one vector a block, Q [B, H, T, D] by MEANS [B * Hkv, nb, D]."""
    pid = tl.program_id(0)
    # The last rows have most candidates under CAUSAL: they go first. Heads of one tile row share the cache.
    head = pid % (heads * batch)
    base = (tile_rows - 1 - pid // (heads * batch)) * BM
    b = head // heads
    group = b * (heads // REPEAT) + head % heads // REPEAT
    tokens, end = candidates(LENGTHS, b, base, q_len, blocks, BM, SIZE, CAUSAL)
    row = base + tl.arange(0, BM)
    own = row // SIZE
    offs_d = tl.arange(0, BD)
    offs_n = tl.arange(0, BN)
    at = Q + tl.multiple_of(b.to(tl.int64) * q_b + (head % heads).to(tl.int64) * q_h, ALIGN)
    at = at + row.to(tl.int64)[:, None] * q_t + offs_d[None, :]
    q = tl.load(at, mask=(row < tokens)[:, None] & (offs_d < D)[None, :], other=0.0)
    first, second, third = in_parts(q, PARTS, INTERPRETED)
    means = MEANS + (group * blocks).to(tl.int64) * D
    values, numbers = none_yet(BM, N)
    for start in tl.range(0, end, BN):
        number = start + offs_n
        place = means + number[:, None] * D + offs_d[None, :]
        inside = (number < end)[:, None] & (offs_d < D)[None, :]
        mean = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        large, middle, small = in_parts(mean, MEAN_PARTS, INTERPRETED)
        large, middle, small = tl.trans(large), tl.trans(middle), tl.trans(small)
        scores = product_of_parts(first, second, third, large, middle, small, PARTS)
        scores = tl.where(allowed(number, own, end, CAUSAL), scores, float("-inf"))
        values, numbers = with_chunk(scores, number, values, numbers, N)
    store_picks(OUT, numbers, own, head.to(tl.int64), row, q_len, row < tokens, N, OWN)


@triton.jit(do_not_specialize=VARYING)
def choose_by_scores(
    SCORES,
    LENGTHS,
    OUT,
    s_b: tl.int64,
    s_h: tl.int64,
    s_t: tl.int64,
    q_len: tl.int32,
    rows: tl.int32,
    first_row: tl.int32,
    blocks: tl.int32,
    heads: tl.int32,
    batch: tl.int32,
    BM: tl.constexpr,
    BN: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Picks by SCORES [B, H, rows, nb] that are given, of the queries from `first_row` on."""
    pid = tl.program_id(0)
    head = pid % (heads * batch)
    base = pid // (heads * batch) * BM
    b = head // heads
    place = base + tl.arange(0, BM)
    row = first_row + place
    tokens, end = candidates(LENGTHS, b, first_row + base, q_len, blocks, BM, SIZE, CAUSAL)
    own = row // SIZE
    offs_n = tl.arange(0, BN)
    scores_of_row = SCORES + b.to(tl.int64) * s_b + (head % heads).to(tl.int64) * s_h + place.to(tl.int64)[:, None] * s_t
    values, numbers = none_yet(BM, N)
    for start in tl.range(0, end, BN):
        number = start + offs_n
        keep = allowed(number, own, end, CAUSAL) & (place < rows)[:, None]
        scores = tl.load(scores_of_row + number[None, :], mask=keep, other=float("-inf")).to(tl.float32)
        values, numbers = with_chunk(scores, number, values, numbers, N)
    store_picks(OUT, numbers, row, head.to(tl.int64), place, rows, row < tokens, N, False)


@on_its_device
def triton_choose(
    q: Tensor, means: Tensor, lengths: Tensor | None, picks: int, block_size: int, causal: bool, own: bool = False
) -> Tensor:
    """As `choose.choose_blocks`."""
    (B, H, T, D), (_, Hkv, blocks, _) = q.shape, means.shape
    q = readable(q)
    means = from_16_bytes(means.contiguous())
    out = torch.empty((B, H, T, picks + own), dtype=torch.int32, device=q.device)
    block_q, block_n = tile_of(q)
    tile_rows = -(-T // block_q)
    lengths = as_contiguous(lengths)
    # Two programs of 8 warps fit a processor then: while one picks, the other's products run. No more picks go without spills.
    registers = 128 if block_q == 128 and picks < 16 else None
    q_b, q_h, q_t, _ = q.stride()
    strides = {"q_b": q_b, "q_h": q_h, "q_t": q_t}
    sizes = {"q_len": T, "blocks": blocks, "heads": H, "tile_rows": tile_rows, "batch": B}
    tiles = {"D": D, "BD": width_of(D), "BM": block_q, "BN": block_n, "N": picks, "SIZE": block_size, "REPEAT": H // Hkv}
    kinds = {"PARTS": PARTS[q.dtype], "CAUSAL": causal, "OWN": own, "ALIGN": alignment(D, q), "INTERPRETED": not q.is_cuda}
    numbers = {**strides, **sizes, **tiles, **kinds}
    launch = Launch(8 if block_q == 128 else 4, 2, registers=registers)
    run_kernel(choose_by_means, tile_rows * B * H, launch, q, means, lengths, out, **numbers)
    return out


@on_its_device
def triton_choose_scored(
    scores: Tensor, lengths: Tensor | None, first_row: int, length: int, picks: int, block_size: int, causal: bool
) -> Tensor:
    """As `choose.choose_scored_blocks`."""
    B, H, rows, blocks = scores.shape
    scores = readable(scores)
    out = torch.empty((B, H, rows, picks), dtype=torch.int32, device=scores.device)
    block_q = 32  # scores take no shared memory, and small tiles hide the wait for them
    lengths = as_contiguous(lengths)
    s_b, s_h, s_t, _ = scores.stride()
    strides = {"s_b": s_b, "s_h": s_h, "s_t": s_t}
    sizes = {"q_len": length, "rows": rows, "first_row": first_row, "blocks": blocks, "heads": H, "batch": B}
    constants = {"BM": block_q, "BN": CANDIDATES, "N": picks, "SIZE": block_size, "CAUSAL": causal}
    numbers = {**strides, **sizes, **constants}
    run_kernel(choose_by_scores, -(-rows // block_q) * B * H, SMALL, scores, lengths, out, **numbers)
    return out


def tile_of(q: Tensor) -> tuple[int, int]:
    """Queries and candidates of a tile: the queries' parts stay in shared memory, beside two rounds of the candidates'."""
    # A quarter is left for scores on their way between layouts.
    budget = shared_memory(capability_of(q.device)) * 3 // 4
    row_bytes, parts = 2 * width_of(q.shape[-1]), PARTS[q.dtype]
    block_q, block_n = 128, CANDIDATES
    while (parts * block_q + 2 * MEAN_PARTS.value * block_n) * row_bytes > budget and block_n > SMALLEST:
        if block_q >= 2 * block_n:
            block_q //= 2
        else:
            block_n //= 2
    return block_q, block_n
