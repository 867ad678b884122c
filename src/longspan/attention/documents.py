"""Packed documents as sequences of their own, for attention that chooses what a token sees by what all tokens hold.

A mask is not enough there: which tokens a cluster takes, or where a bucket is cut, would still follow from the other
documents of the row.

Legend: B batch, H heads, T tokens, D head width, N tokens that exist, n documents of a group, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longspan.attention.errors import not_meta
from longspan.config.errors import CallError
from longspan_kernels.block_sparse import is_mapped

SHORTEST = 16  # documents are grouped by the power of two that holds them, from this one on


@torch.compiler.disable  # how many documents there are, and how long, is read from the device
def attend_by_document(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    segments: Tensor,
) -> Tensor:
    """What ``attend(q, k, v, lengths)`` gives for each document alone, [B, H, T, D]; padding gets 0.

    Documents of similar length form a batch, so that padding them at most doubles the work.

    Args:
        q: [B, H, T, D]; k, v: [B, Hkv, T, D].
        lengths: [B] int, tokens of each row, or None for all.
        segments: [B, T] int, the document of each token.

    Raises:
        CallError: torch.vmap maps over segments or lengths, or tensors are on the meta device.
    """
    if is_mapped(segments) or (lengths is not None and is_mapped(lengths)):
        raise CallError(
            "torch.vmap over segments, or lengths beside them: how many documents there are decides the shapes here; put the "
            "mapped dimension into the batch, as in attention(q.flatten(0, 1), ..., segments=segments.flatten(0, 1))"
        )
    not_meta(
        q,
        "segments say how many documents there are and how long, on which all shapes here depend",
        "leave segments out, which takes each row as one document, or use a device that holds numbers, such as the CPU",
    )
    B, H, T, D = q.shape
    exists = torch.ones((B, T), dtype=torch.bool, device=q.device)
    if lengths is not None:
        exists = torch.arange(T, device=q.device) < lengths[:, None]
    token = exists.flatten().nonzero()[:, 0]  # (N,) places in B * T
    named = torch.stack((token // T, segments.flatten()[token]), 1)
    _, document, counts = torch.unique(named, dim=0, return_inverse=True, return_counts=True)
    order = torch.argsort(document, stable=True)
    token, document = token[order], document[order]
    place = torch.arange(len(token), device=q.device) - (counts.cumsum(0) - counts)[document]
    # Of each document; at most the row's, for which whoever has weights for each position was built.
    size = torch.clamp(2 ** torch.ceil(torch.log2(counts.double())).long(), min=SHORTEST, max=T)
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # (B T, heads, D)
    parts: list[Tensor] = []
    tokens: list[Tensor] = []
    for L in size.unique().tolist():
        chosen = size == L
        number = chosen.cumsum(0) - 1  # of each document in its group
        own = chosen[document]
        row, column = number[document[own]], place[own]
        index = torch.zeros((int(chosen.sum()), L), dtype=torch.int64, device=q.device)  # padding repeats some token
        index[row, column] = token[own]
        q_group, k_group, v_group = (x[index].transpose(1, 2) for x in flat)  # (n, heads, L, D)
        out = attend(q_group, k_group, v_group, counts[chosen])  # (n, H, L, D)
        parts.append(out.transpose(1, 2)[row, column])
        tokens.append(token[own])
    merged = torch.zeros((B * T, H, D), dtype=v.dtype, device=q.device)
    if parts:
        merged = merged.index_put((torch.cat(tokens),), torch.cat(parts).to(v.dtype))
    return merged.view(B, T, H, D).transpose(1, 2)
