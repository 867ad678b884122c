"""Overlapping blocks of tokens, each compressed to one: the coarse view of native sparse attention.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, l tokens a compressed block, d tokens from one to the
next, nc compressed blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longspan.attention.content import with_lse
from longspan.patterns import Full
from longspan.patterns.compressed_keys import CompressedKeys
from longspan_kernels.selected import compress_blocks


def compressed_count(length: int, block: int, stride: int) -> int:
    """nc: the blocks that lie wholly inside `length` tokens."""
    return max(0, (length - block) // stride + 1)


class BlockCompression(nn.Module):
    """[B, Hkv, T, D] -> [B, Hkv, nc, D]: an MLP over the tokens of a block, each with what its place in the block adds.

    All key/value heads share it. It starts near the mean: the MLP is added to the mean of the block, with a small weight.

    Args:
        block, stride: l and d.
        head_dim: D, also the width inside the MLP.
        learned: False for the plain mean.
    """

    def __init__(self, block: int, stride: int, head_dim: int, learned: bool) -> None:
        super().__init__()
        self.block, self.stride, self.head_dim, self.learned = block, stride, head_dim, learned
        if learned:
            self.places = nn.Parameter(torch.randn(block, head_dim) * 0.02)
            self.enter = nn.Linear(block * head_dim, head_dim)
            self.leave = nn.Linear(head_dim, head_dim)
            nn.init.normal_(self.leave.weight, std=0.1 * head_dim**-0.5)

    def forward(self, x: Tensor, backend: str = "auto") -> Tensor:
        if not self.learned:
            return x.unfold(2, self.block, self.stride).mean(-1)
        enter, leave = (self.enter.weight, self.enter.bias), (self.leave.weight, self.leave.bias)
        return compress_blocks(x, self.places, enter, leave, self.stride, backend)

    def flops(self, length: int) -> int:
        """Matmul FLOPs of one key/value head."""
        D = self.head_dim
        return compressed_count(length, self.block, self.stride) * 2 * (self.block + 1) * D * D if self.learned else 0


def attend_to_compressed(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block: int,
    stride: int,
    *,
    causal: bool,
    lengths: Tensor | None,
    dropout_p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Attention to compressed keys and values [B, Hkv, nc, D] -> out [B, H, T, D], lse [B, H, T].

    Causal, a query sees the blocks that end at or before it. Of a sequence shorter than T it sees none beyond its end then.
    """
    nc = keys.shape[2]
    call: dict[str, Any] = {"dropout_p": dropout_p, "backend": backend}
    if causal:
        return attend_to_past(q, keys, values, CompressedKeys(stride, block - 1), **call)
    if lengths is not None:
        lengths = (lengths, ((lengths - block) // stride + 1).clamp(0, nc))  # type: ignore[assignment]
    return with_lse(q, keys, values, Full(), lengths=lengths, **call)


def attend_to_past(
    q: Tensor, keys: Tensor, values: Tensor, pattern: CompressedKeys, *, dropout_p: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H, T, D] to earlier blocks [B, Hkv, N, D], one key a block -> out [B, H, T, D], lse [B, H, T].

    On a CPU torch's dense kernel is quicker than tiles (kernels/NOTES.md). Token first + m * step + r sees blocks up to m,
    whatever r < step is. So the tokens of each r are an ordinary causal problem of as many queries as keys, and all of them one
    call, r beside the batch.
    """
    (B, _, T, _), step, first = q.shape, pattern.step, pattern.first
    most = -(-(T - first) // step)  # blocks that the last query sees
    call: dict[str, Any] = {"dropout_p": dropout_p, "backend": backend}
    if q.device.type != "cpu" or backend != "auto" or not 0 < most <= keys.shape[2]:
        return with_lse(q, keys, values, pattern, **call)
    rows = nn.functional.pad(q[:, :, first:], (0, 0, 0, most * step - (T - first)))
    rows = rows.unflatten(2, (most, step)).permute(0, 3, 1, 2, 4).flatten(0, 1)  # (B step, H, most, D)
    keys, values = (x[:, None, :, :most].expand(B, step, -1, -1, -1).flatten(0, 1) for x in (keys, values))
    out, lse = with_lse(rows, keys, values, Full(), causal=True, **call)
    out = out.unflatten(0, (B, step)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, H, most step, D)
    lse = lse.unflatten(0, (B, step)).permute(0, 2, 3, 1).flatten(2, 3)
    out = nn.functional.pad(out[:, :, : T - first], (0, 0, first, 0))
    return out, nn.functional.pad(lse[:, :, : T - first], (first, 0), value=float("-inf"))
