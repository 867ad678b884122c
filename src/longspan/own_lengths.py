"""Attention both ways by a pattern that follows from the length of the sequence: each sequence of a batch has its own.

Where a GPU's kernels serve it, one call has a list of blocks for each sequence, made on the device, so that nothing waits for
it. Else sequences whose lengths give the same pattern are attended together, cut at their common end, a call for each length.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, n blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from longspan.kept_by_tensor import KeptByTensor
from longspan.patterns import Pattern
from longspan_kernels.block_sparse.backends import active_transform, choose_backend
from longspan_kernels.block_sparse.layout import DeviceLayout, tile_side
from longspan_kernels.block_sparse.op import attend, attend_by
from longspan_kernels.errors import BackendError
from longspan_kernels.launch.graphs import capturing

Pair = tuple[Tensor, Tensor]
MOST_LISTED = 1 << 24  # entries of the lists, 64 MiB: longer sequences keep the device busy for longer than calls cost the host
_kept = KeptByTensor()  # of lengths: their numbers, where a GPU has them, and lists of blocks

HOST_READS = "the pattern follows from each sequence's length, which the host must read"


def attend_at_own_lengths(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    lengths: Pair,
    segments: Pair | None,
    block_bias: Tensor | None,
    bias_block: int,
    return_lse: bool,
    **call: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `attend`, both ways and with Tq = Tk, each sequence by the pattern of its own length, the larger of its two.

    Args:
        q, k, v: [B, H, T, D] and [B, Hkv, T, D].
        lengths: of queries and of keys, [B] each.
        segments: of queries and of keys, [B, T] each.

    Raises:
        BackendError: a CUDA graph is being recorded, or a graph traced (torch.export), which could not follow other lengths.
    """
    sides = None if segments is None else (segments[0].to(q.device), segments[1].to(q.device))
    compiling = torch.compiler.is_compiling()
    recording = not compiling and capturing(q.device)
    fixed = compiling or recording or get_proxy_mode() is not None
    backend = choose_backend(call["backend"], q, k, active_transform(q, k, v), by_pattern=True)
    layout = None
    can = block_bias is None and backend in ("triton", "blocked") and not (recording and any(x.is_cpu for x in lengths))
    if can and (fixed or (backend == "triton" and _differ(lengths, pattern, q))):
        layout = _listed(q, pattern, lengths, backend, keep=not fixed)
    if layout is not None:
        limits: dict[str, Any] = {"q_lengths": lengths[0].to(q.device), "k_lengths": lengths[1].to(q.device)}
        if sides is not None:
            limits |= {"q_segments": sides[0], "k_segments": sides[1]}
        return attend_by(q, k, v, layout, **limits, **call, return_lse=return_lse)
    call |= {"key": pattern.key, "block_bias": block_bias, "bias_block": bias_block}
    out, lse = _attend_by_length(q, k, v, pattern, lengths, sides, call)
    return (out, lse) if return_lse else out


def _differ(lengths: Pair, pattern: Pattern, q: Tensor) -> bool:
    """Whether sequences of a batch have different patterns."""
    if any(map(is_functorch_wrapped_tensor, lengths)):
        return False
    return len(set(_sizes(lengths, pattern.length_step(False), q.shape[2]))) > 1


def _listed(q: Tensor, pattern: Pattern, lengths: Pair, backend: str, keep: bool) -> DeviceLayout | None:
    """Blocks of each sequence, or None where kernels have no tiles for them or lists would be too long.

    Args:
        keep: whether to keep the lists for the next layer, as long as the lengths live.
    """
    size, (B, H, T, _) = pattern.length_step(False), q.shape
    tile = tile_side(q, size) if backend == "triton" else size
    if size % tile or B * H * (-(-T // tile)) ** 2 > MOST_LISTED:
        return None
    if not keep or lengths[0] is not lengths[1]:
        return _made(q, pattern, lengths, size, tile)
    return _kept.get(lengths[0], (pattern.key, H, T, tile, q.device), lambda: _made(q, pattern, lengths, size, tile))


def _made(q: Tensor, pattern: Pattern, lengths: Pair, size: int, tile: int) -> DeviceLayout | None:
    (_, H, T, _), device = q.shape, q.device
    blocks, share = -(-T // size), size // tile
    own = _ends(torch.maximum(*(x.to(device) for x in lengths)), size, T)  # (B)
    kept = pattern.kept_blocks((own + size - 1) // size, blocks, H)
    if kept is None:
        return None
    kept = kept.repeat_interleave(share, 2)[:, :, : -(-T // tile)]  # (B, H or 1, rows of tiles, n)
    column = torch.where(kept, torch.arange(blocks, device=device, dtype=torch.int32), blocks).sort(-1).values
    index = (column[..., None] * share + torch.arange(share, device=device, dtype=torch.int32)).flatten(-2)
    tiles = -(-T // tile)
    count = (index < tiles).sum(-1, dtype=torch.int32)  # the last block may hold fewer tiles than others
    return DeviceLayout(index.clamp(max=tiles - 1), count, tile, tile, T, T)


@torch.compiler.disable(reason=HOST_READS)
def _attend_by_length(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, lengths: Pair, segments: Pair | None, call: dict[str, Any]
) -> Pair:
    """out and lse, by a call for each length."""
    tracing = get_proxy_mode() is not None
    if tracing or capturing(q.device):
        what = "a graph is traced (torch.export)" if tracing else "a CUDA graph is recorded"
        raise BackendError(
            f"lengths with {pattern}, both ways, while {what}: {HOST_READS}; give no lengths, to sequences of one length, or "
            "take a causal pattern"
        )
    step = pattern.length_step(False)
    given = [q, k, v, *(x.to(q.device) for x in lengths), *(segments or ())]
    if any(map(is_functorch_wrapped_tensor, lengths)):
        return _cut_at_all(step, given, call)
    sizes = _sizes(lengths, step, q.shape[2])
    if len(set(sizes)) == 1:
        return _cut_at(sizes[0], given, call)
    # Split and put together again, so are their gradients: those of indices would be added to zeros.
    split = [x.split(1) for x in given]
    found: dict[int, Pair] = {}
    for size in sorted(set(sizes)):
        rows = [row for row, own in enumerate(sizes) if own == size]
        parts = [torch.cat([x[row] for row in rows]) if len(rows) > 1 else x[rows[0]] for x in split]
        out, lse = _cut_at(size, parts, call)
        found |= dict(zip(rows, zip(out.split(1), lse.split(1), strict=True), strict=True))
    outs, lses = zip(*(found[row] for row in range(len(sizes))), strict=True)
    return torch.cat(outs), torch.cat(lses)


def _cut_at(size: int, given: list[Tensor], call: dict[str, Any]) -> Pair:
    """out and lse of sequences whose first `size` tokens are all that exist; `given` are q, k, v, two lengths and segments."""
    T, bias, bias_block = given[0].shape[2], call["block_bias"], call["bias_block"]
    q, k, v = (x if size == T else x[:, :, :size] for x in given[:3])
    sides: Sequence[Tensor | None] = [x if size == T else x[:, :size] for x in given[5:]] or (None, None)
    if bias is not None:
        blocks = -(-size // bias_block)
        call = {**call, "block_bias": bias[:, :blocks, :blocks]}
    limits: dict[str, Any] = {"q_lengths": given[3], "k_lengths": given[4], "q_segments": sides[0], "k_segments": sides[1]}
    out, lse = attend(q, k, v, **call, **limits, return_lse=True)
    if size < T:
        return F.pad(out, (0, 0, 0, T - size)), F.pad(lse, (0, T - size), value=float("-inf"))
    return out, lse


def _cut_at_all(step: int, given: list[Tensor], call: dict[str, Any]) -> Pair:
    """out and lse where torch.func maps over the lengths: all sequences are cut wherever one is, and each keeps its own."""
    own = _ends(torch.maximum(given[3], given[4]), step, given[0].shape[2])
    numbers = own
    while is_functorch_wrapped_tensor(numbers):
        numbers = get_unwrapped(numbers)
    first, *sizes = numbers.unique().tolist() or [given[0].shape[2]]
    out, lse = _cut_at(first, given, call)
    for size in sizes:
        here = (own == size)[:, None, None]  # (B, 1, 1)
        more, more_lse = _cut_at(size, given, call)
        out, lse = torch.where(here[..., None], more, out), torch.where(here, more_lse, lse)
    return out, lse


def _sizes(lengths: Pair, step: int, most: int) -> list[int]:
    """Where each sequence is cut."""
    batch = len(lengths[0])
    if any(x.is_meta for x in lengths) or detect_fake_mode(lengths) is not None:  # shapes alone are asked for
        return [most] * max(1, batch)
    return _ends(torch.maximum(*map(_on_host, lengths)), step, most).tolist() or [most]


def _ends(lengths: Tensor, step: int, most: int) -> Tensor:
    """[B], the lengths up to a multiple of `step`, at which a sequence keeps the same pairs."""
    return ((lengths.long().clamp(1, most) + step - 1) // step * step).clamp(max=most)


def _on_host(x: Tensor) -> Tensor:
    """x on the CPU. What comes from a GPU is kept while x lives: the layers of a model ask for the same lengths."""
    return x if x.device.type == "cpu" else _kept.get(x, "numbers", x.cpu)
