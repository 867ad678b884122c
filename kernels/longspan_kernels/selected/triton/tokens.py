"""Attention to tokens that queries chose one by one, on Triton. Triton is imported here: import this file lazily.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, n picks a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan_kernels.block_sparse.triton.common import interprets_bfloat16
from longspan_kernels.launch.graphs import remembered
from longspan_kernels.launch.launcher import Launch, Plan, from_16_bytes, on_its_device, width_of
from longspan_kernels.selected.triton import configs
from longspan_kernels.selected.triton.backward_kernels import row_numbers
from longspan_kernels.selected.triton.call_layout import in_units, laid_out, like_queries
from longspan_kernels.selected.triton.token_kernels import add_tokens, attend_tokens, differentiate_tokens
from longspan_kernels.selected.triton.token_lists import LISTS, count_picks, mark_picks, place_words


@dataclass(frozen=True)
class Shape:
    """Everything that launches depend on. Strides are those of batch, head and token, in units."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    width: int
    picks: int
    scale: float
    dtype: torch.dtype
    device: torch.device
    q_strides: tuple[int, int, int]
    kv_strides: tuple[int, int, int]


@dataclass(frozen=True)
class Listing:
    """The launches that make the lists of queries `begin` to `begin` + `rows`: see `token_lists`."""

    mark: Plan
    count: Plan
    place: Plan
    words: int  # of all chunks
    chunks: int
    tiles: int

    def __call__(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        """The table and the ends of the lists."""
        lists, device = picks.shape[0] * picks.shape[1], picks.device
        table = torch.zeros((self.words, lists), dtype=torch.int64, device=device)
        self.mark(picks, table)
        counts = torch.empty((self.chunks, self.tiles), dtype=torch.int32, device=device)
        self.count(table, counts)
        ends = torch.empty((self.chunks, lists), dtype=torch.int32, device=device)
        self.place(table, counts.cumsum(1, dtype=torch.int32), ends)
        return table, ends


def listing(batch: int, length: int, picks: int, begin: int, rows: int, chunk: int) -> Listing:
    lists, chunks, words = batch * length, -(-rows // chunk), chunk // 32
    block = max(16, min(1024, 1 << (picks - 1).bit_length()))
    marked = {"length": length, "start": begin, "rows": rows, "lists": lists, "n": picks, "BN": block}
    numbers = {"lists": lists, "words": words, "BW": 64, "BL": LISTS}
    tiles = -(-lists // LISTS)
    return Listing(
        Plan(mark_picks, batch * rows, marked, configs.MERGE),
        Plan(count_picks, chunks * tiles, numbers, configs.MERGE),
        Plan(place_words, chunks * tiles, numbers, configs.MERGE),
        chunks * words,
        chunks,
        tiles,
    )


class Launches:
    """The launches of one shape.

    Attributes:
        chunk: queries whose gradients of keys and values are in memory at a time.
        parts: numbers in these gradients.
        groups: chunks whose lists are made together: of each the launches for lists, and for each chunk those for dq and parts,
            and for sums.
    """

    def __init__(self, shape: Shape):
        self.shape = s = shape
        group = s.heads // s.kv_heads
        self.numbers = {
            **dict(zip(("q_b", "q_h", "q_t", "kv_b", "kv_h", "kv_t"), (*s.q_strides, *s.kv_strides), strict=True)),
            **{"length": s.length, "kv_heads": s.kv_heads, "scale": s.scale, "n": s.picks},
            **{"G": group, "BG": max(16, 1 << (group - 1).bit_length()), "D": s.width, "BD": width_of(s.width)},
        }
        tile = configs.tokens_tile(s.width, s.dtype.itemsize)
        self.forward = Plan(attend_tokens, s.batch * s.kv_heads * s.length, {**self.numbers, "BN": tile.keys}, tile.launch)
        tiles = -(-s.length // 64)
        rows = {
            **dict(zip(("do_b", "do_h", "do_t"), s.q_strides, strict=True)),
            **{"length": s.length, "tiles": tiles, "HEADS": s.heads, "D": s.width, "BD": width_of(s.width), "BM": 64},
        }
        self.rows = Plan(row_numbers, tiles * s.batch * s.heads, rows, configs.MERGE)
        list_bytes = s.batch * s.length // 4  # a query
        row_bytes = s.batch * s.kv_heads * s.picks * s.width * 2 * s.dtype.itemsize
        most = min(configs.TOKEN_BYTES // row_bytes, configs.TOKEN_LIST_BYTES // max(1, list_bytes))
        self.chunk = 32 * max(1, min(most, s.length + 31) // 32)
        self.parts = s.kv_heads * s.batch * self.chunk * s.picks * 2 * s.width
        together = self.chunk * max(1, configs.TOKEN_LIST_BYTES // max(1, list_bytes) // self.chunk)
        self.groups = [self.group(begin, min(together, s.length - begin)) for begin in range(0, s.length, together)]

    def group(self, begin: int, rows: int) -> tuple[Listing, list[tuple[Plan, Plan]]]:
        s = self.shape
        made = listing(s.batch, s.length, s.picks, begin, rows, self.chunk)
        return made, [(self.differentiating(begin, number), self.adding(begin, number)) for number in range(made.chunks)]

    def differentiating(self, begin: int, number: int) -> Plan:
        s, tile = self.shape, configs.token_gradients_tile(self.shape.width, self.shape.dtype.itemsize)
        first = number * self.chunk
        own = {"start": begin + first, "chunk": self.chunk, "first_word": first // 32, "lists": s.batch * s.length}
        own["BN"] = tile.keys
        return Plan(differentiate_tokens, s.batch * s.kv_heads * self.chunk, {**self.numbers, **own}, tile.launch)

    def adding(self, begin: int, number: int) -> Plan:
        s = self.shape
        sizes = {"lists": s.batch * s.length, "length": s.length, "kv_heads": s.kv_heads}
        own = {"parts": s.batch * self.chunk * s.picks, "chunk_number": number, "ADD": begin + number > 0}
        numbers = {**sizes, **own, "D": s.width, "BD": width_of(s.width), "BN": configs.ADDED_ROWS}
        return Plan(add_tokens, s.batch * s.kv_heads * s.length, numbers, Launch(1, 1))


@remembered(64)
def launches_of(shape: Shape) -> Launches:
    return Launches(shape)


def _launches(q: Tensor, k: Tensor, picks: Tensor, scale: float) -> Launches:
    (B, H, T, D), Hkv = q.shape, k.shape[1]
    return launches_of(Shape(B, H, Hkv, T, D, picks.shape[2], scale, q.dtype, q.device, in_units(q), in_units(k)))


@on_its_device
def triton_tokens_forward(q: Tensor, k: Tensor, v: Tensor, picks: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out [B, H, T, D] and lse [B, H, T]."""
    if interprets_bfloat16(q):
        out, lse = triton_tokens_forward(q.float(), k.float(), v.float(), picks, scale)
        return out.to(q.dtype), lse
    q, k, v = laid_out(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _launches(q, k, picks, scale).forward(q, k, v, from_16_bytes(picks.contiguous()), out, lse)
    return out, lse


@on_its_device
def triton_tokens_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, picks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv."""
    if interprets_bfloat16(q):
        grads = triton_tokens_backward(dout.float(), q.float(), k.float(), v.float(), out.float(), lse, picks, scale)
        return grads[0].to(q.dtype), grads[1].to(q.dtype), grads[2].to(q.dtype)
    q, k, v = laid_out(q, k, v)
    dout, picks = like_queries(dout, q), from_16_bytes(picks.contiguous())
    launches = _launches(q, k, picks, scale)
    row_pairs = torch.empty((*lse.shape, 2), dtype=torch.float32, device=q.device)
    launches.rows(out, dout, lse, None, row_pairs)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    kind = torch.float32 if launches.chunk < q.shape[2] else k.dtype  # several chunks add up in float32
    dk, dv = (torch.empty(k.shape, dtype=kind, device=q.device) for _ in range(2))
    parts = torch.empty(launches.parts, dtype=q.dtype, device=q.device)
    for lists, chunks in launches.groups:
        table, ends = lists(picks)
        for differentiate, add in chunks:
            differentiate(q, k, v, dout, row_pairs, picks, table, dq, parts)
            add(parts, ends, dk, dv)
    return dq, dk.to(k.dtype), dv.to(v.dtype)
