"""Attention and mask functions in the form that transformers' interfaces call.

A model makes its mask once a forward pass and hands it to each layer. Here the mask is no [T, T] tensor but the segment of
each key, [B, 1, 1, Tk]: padding has segment -1, packed sequences have one each. Queries are the last Tq of the keys.

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longspan.config.errors import CallError
from longspan.functional import sparse_attention
from longspan.kept_by_tensor import KeptByTensor
from longspan.patterns import Full, Local, Pattern, PerHead, Strided
from longspan.patterns.compose import Intersection, Union

NO_KEYS = -2  # the segment of a query at padding: no key has it
FEW_QUERIES = 16  # a decoding step: its pairs are too few for tiles
_kept = KeptByTensor()


class Choice(Protocol):
    """Which pattern each layer of a model takes."""

    def at(self, heads: int, causal: bool, layer: int) -> Pattern: ...


def attention_function(name: str, choice: Choice) -> Callable[..., tuple[Tensor, None]]:
    """What `AttentionInterface` calls for the layers of a model: attention by a pattern."""
    refuse = _Refusals(name)

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        """query [B, H, Tq, D], key and value [B, Hkv, Tk, D] -> [B, Tq, H, D], and no weights."""
        refuse.arguments(module, rest)
        q_len, k_len = query.shape[2], key.shape[2]
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if not causal and q_len != k_len:
            raise refuse(
                f"attends from {q_len} queries to {k_len} other tokens, and a pattern relates positions of one sequence"
            )
        kept = choice.at(query.shape[1], causal, int(getattr(module, "layer_idx", None) or 0))
        if sliding_window is not None:
            kept = kept & Local(sliding_window if causal else 2 * sliding_window - 1)  # distances below it, as FlashAttention's
        segments, lengths = None, None
        if attention_mask is not None:
            segments = _segments(attention_mask, q_len, k_len, refuse)
            if kept.depends_on_length(causal):
                lengths = _ends(attention_mask, segments[1])
        width = value.shape[-1]  # of latent attention (DeepSeek) less than the keys': zeros beside it change nothing
        out = sparse_attention(
            query,
            key,
            F.pad(value, (0, key.shape[-1] - width)) if width < key.shape[-1] else value,
            kept,
            causal=causal,
            lengths=lengths,
            segments=segments,
            scale=scaling,
            dropout_p=dropout,
            backend="dense" if q_len < FEW_QUERIES else "auto",
        )
        return cast(Tensor, out)[..., :width].transpose(1, 2).contiguous(), None  # (B, Tq, H, D); some view it as (B, Tq, C)

    return attention


def mask_function(name: str, choice: Choice) -> Callable[..., Tensor | None]:
    """What `AttentionMaskInterface` calls once a forward pass: the segment of each key, or None where all are one."""
    refuse = _Refusals(name)
    pattern = choice.at(4, True, 0)
    anchored = not knows_distances_alone(pattern)

    def mask(
        batch_size: int,
        q_length: int,
        kv_length: int,
        q_offset: int | Tensor = 0,
        kv_offset: int = 0,
        mask_function: Callable[..., Any] | None = None,
        attention_mask: Tensor | None = None,
        device: torch.device | str = "cpu",
        use_vmap: bool = False,
        **_: Any,
    ) -> Tensor | None:
        if use_vmap:
            raise refuse("has a mask function of its own on top; give the whole mask as the pattern")
        if isinstance(q_offset, Tensor) or q_offset + q_length != kv_offset + kv_length:
            raise refuse("has a cache of fixed size, whose unwritten places look like tokens; use the dynamic cache")
        if anchored and kv_offset:
            raise refuse(f"has a cache that forgets, and {pattern} names positions from the start; use a full cache")
        starts = _starts(mask_function, batch_size, q_length, torch.device(device), refuse)  # (B, Tq)
        real = None
        if attention_mask is not None:
            real = attention_mask[:, kv_offset : kv_offset + kv_length].to(torch.bool)
            real = None if real.shape[1] == kv_length and bool(real.all()) else real
        if real is None and starts is None:
            return None
        segment = torch.zeros(batch_size, kv_length, dtype=torch.int32, device=device)
        if starts is not None:
            segment[:, kv_length - q_length :] += starts.cumsum(1).to(torch.int32)
        if real is not None:
            if anchored and not bool(real[:, 0].all()):
                raise refuse(f"has padding before its tokens, and {pattern} names positions from the start; pad on the right")
            segment[:, : real.shape[1]].masked_fill_(~real, -1)
            segment[:, real.shape[1] :] = -1
        return segment[:, None, None, :]  # (B, 1, 1, Tk)

    return mask


def knows_distances_alone(pattern: Pattern) -> bool:
    """Whether a pattern depends on i - j alone, so that it does not matter where a sequence begins."""
    if isinstance(pattern, (Union, Intersection)):
        return all(knows_distances_alone(part) for part in pattern.parts)
    if isinstance(pattern, PerHead):
        return all(knows_distances_alone(part) for part in pattern.patterns)
    return isinstance(pattern, (Full, Local, Strided))


def _starts(
    mask_function: Callable[..., Any] | None, batch: int, q_length: int, device: torch.device, refuse: _Refusals
) -> Tensor | None:
    """Which queries begin a packed sequence, bool [B, Tq]: those that the model's mask parts from the token before."""
    if mask_function is None or q_length < 2:
        return None
    b = torch.arange(batch, device=device)[:, None]  # (B, 1)
    i = torch.arange(1, q_length, device=device)[None, :]  # (1, Tq - 1)
    head = torch.zeros((), dtype=torch.long, device=device)
    shape = (batch, q_length - 1)
    together = torch.as_tensor(mask_function(b, head, i, i - 1), device=device).expand(shape)
    ahead = torch.as_tensor(mask_function(b, head, i - 1, i), device=device).expand(shape)
    if bool((ahead & together).any()) and bool((together & ~ahead).any()):
        raise refuse("lets some tokens look ahead and others not (images in text?); a pattern is causal or is not")
    if bool(together.all()):
        return None
    return torch.cat([together.new_zeros(batch, 1), ~together], 1)


def _segments(mask: Tensor, q_len: int, k_len: int, refuse: _Refusals) -> tuple[Tensor, Tensor]:
    """(query segments [B, Tq], key segments [B, Tk]) of a mask that `mask_function` made."""
    if mask.dim() != 4 or mask.shape[1:3] != (1, 1) or mask.dtype != torch.int32:
        raise refuse(f"is given a mask of its own, {mask.dtype} {tuple(mask.shape)}; give a padding mask [B, T], or a pattern")
    keys = mask[:, 0, 0, mask.shape[-1] - k_len :]  # a layer's cache may keep fewer keys
    queries = keys[:, k_len - q_len :]
    return queries.masked_fill(queries < 0, NO_KEYS), keys


def _ends(mask: Tensor, keys: Tensor) -> Tensor:
    """[B]: where the last token of each sequence ends, for segments of keys [B, Tk], below 0 at padding, that a mask gave.

    All layers get the tensor that the first one made: what is derived from lengths is kept as long as these live.
    """

    def ends() -> Tensor:
        place = torch.arange(1, keys.shape[1] + 1, device=keys.device)
        return place.masked_fill(keys < 0, 0).amax(1)

    return _kept.get(mask, keys.shape[1], ends)


class _Refusals:
    """Says what an implementation cannot serve."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, problem: str) -> CallError:
        return CallError(f'attn_implementation="{self.name}" cannot serve this model: it {problem}')

    def arguments(self, module: nn.Module, rest: dict[str, Any]) -> None:
        """Raises CallError for arguments that change scores in a way that the kernels have not."""
        for argument, problem in _UNSERVED.items():
            if rest.get(argument) is not None and rest[argument] is not False:
                raise self(problem)
        if _weights_are_collected():  # GPT-2 keeps the argument to itself
            raise self(_UNSERVED["output_attentions"])


def _weights_are_collected() -> bool:
    """Whether transformers' hooks wait for attention weights, and would hand on an empty tuple."""
    if torch.compiler.is_compiling():
        return False
    collector = getattr(sys.modules.get("transformers.utils.output_capturing"), "_active_collector", None)
    return collector is not None and "attentions" in (collector.get() or ())


_UNSERVED = {
    "softcap": 'caps its scores (softcap); use attn_implementation="eager" or "flex_attention"',
    "s_aux": 'has attention sinks (s_aux); use attn_implementation="eager" or "flex_attention"',
    "position_bias": 'adds a bias to each pair (position_bias); use attn_implementation="eager"',
    "output_attentions": 'is asked for its attention weights (output_attentions=True); use attn_implementation="eager"',
    "head_mask": 'masks heads (head_mask); use attn_implementation="eager"',
}
