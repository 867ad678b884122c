"""Swaps the attention of transformers' Longformer and BigBird for this project's kernels, with the same outputs.

Weights stay where they are and keep their names: a module only changes its class, to one that computes the same attention in
another way.

Legend: B batch, T tokens, C model width, H heads, D head width, G most global tokens of a sequence, n blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from longspan.config.errors import CallError
from longspan.functional import sparse_attention
from longspan.integrations.huggingface.attention import NO_KEYS
from longspan.patterns import BlockTable, Full, Global, Local, Pattern
from longspan_kernels.selected import merge_by_lse

HIDDEN = -1  # the segment of a key that no query sees


def convert(model: torch.nn.Module) -> torch.nn.Module:
    """The model, with its Longformer and BigBird self-attention computed by this project's kernels.

    Outputs and gradients are those of transformers, in training too (Longformer's dropout draws other numbers): padded
    batches, global tokens, BigBird's repeated random blocks, which count as often as they are listed. The model is changed
    in place; its weights keep their names, so checkpoints fit before and after. Attention weights are no longer returned.

    Raises:
        CallError: the model has no such attention.
    """
    if not isinstance(model, torch.nn.Module):
        raise CallError(f"convert: {model!r:.80} is no model; load it first, as LongformerModel.from_pretrained(folder)")
    converted = 0
    for module in model.modules():
        for own, ours in CONVERTED.items():
            if type(module) is own or type(module) is ours:
                module.__class__ = ours
                converted += 1
    if not converted:
        raise CallError(
            f"convert: {type(model).__name__} has no Longformer or BigBird block-sparse attention; "
            'load other models with attn_implementation="longspan:..." after register()'
        )
    return model


class ConvertedLongformerAttention(LongformerSelfAttention):
    """Longformer's attention (2004.05150): a window without global keys, joined with the global keys; rows of global tokens
    come from projections of their own."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor]:
        """hidden_states [B, T, C] -> ([B, T, C],). attention_mask [B, T]: below 0 padding, above 0 global."""
        _no_weights(output_attentions)
        attend: Callable[..., Any] = functools.partial(
            sparse_attention, scale=self.head_dim**-0.5, dropout_p=self.dropout if self.training else 0.0
        )
        q, k, v = (self._heads(layer(hidden_states)) for layer in (self.query, self.key, self.value))  # (B, H, T, D)
        window = _window(self.one_sided_attn_window_size, ())
        marks = _marks(attention_mask, is_index_global_attn if is_global_attn else None)
        masked, place, absent = marks.masked, marks.place, marks.absent
        if place is None:
            return (_joined(attend(q, k, v, window, segments=_sides(masked, masked))),)
        G = place.shape[1]
        rows = place[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])  # (B, H, G, D)
        if marks.shared is not None:
            # the same global tokens in each sequence are a pattern; their own rows, computed with it, are written over below
            pattern = _window(self.one_sided_attn_window_size, marks.shared)
            out = attend(q, k, v, pattern, segments=_sides(masked, masked))  # (B, H, T, D)
        else:
            near = attend(q, k, v, window, segments=_sides(masked, marks.gone), return_lse=True)
            pairs = _sides(masked, absent, q.shape[2], G)
            far = attend(q, k.gather(2, rows), v.gather(2, rows), Full(), segments=pairs, return_lse=True)
            out = merge_by_lse([near, far])  # (B, H, T, D)
        chosen = hidden_states.gather(1, place[:, :, None].expand(-1, -1, hidden_states.shape[2]))  # (B, G, C)
        own = self._rows_of_globals(self._heads(self.query_global(chosen)), hidden_states, masked)  # (B, H, G, D)
        if absent is not None:
            own = torch.where(absent[:, None, :, None], out.gather(2, rows), own)
        return (_joined(out.scatter(2, rows, own)),)

    def _rows_of_globals(self, q: Tensor, hidden: Tensor, masked: Tensor | None) -> Tensor:
        """Attention of q [B, H, G, D] to the keys and values that projections of their own make of hidden [B, T, C].

        A few queries take the projections upon themselves: q . (W x + b) = (W' q) . x + q . b, and sum p (W x + b) =
        W (sum p x) + b sum p. That is T * C * H * G products a side in place of T * C * C, and no keys or values in memory.
        """
        (B, H, G, D), C = q.shape, hidden.shape[2]
        dropout = self.dropout if self.training else 0.0
        if H * G > C // 2 or not (_plain(self.key_global) and _plain(self.value_global)):
            k, v = (self._heads(layer(hidden)) for layer in (self.key_global, self.value_global))  # (B, H, T, D)
            real = None if masked is None else ~_with_keys(masked)[:, None, None, :]  # (B, 1, 1, T)
            return F.scaled_dot_product_attention(q, k, v, real, dropout_p=dropout)  # (B, H, G, D)
        key, value = (layer.weight.unflatten(0, (H, D)) for layer in (self.key_global, self.value_global))  # (H, D, C)
        key_bias, value_bias = (layer.bias.view(H, 1, D) for layer in (self.key_global, self.value_global))
        q = q * D**-0.5
        score = (q @ key).flatten(1, 2) @ hidden.mT + (q @ key_bias.mT).view(B, H * G, 1)  # (B, H * G, T)
        if masked is not None:
            score = score.masked_fill(_with_keys(masked)[:, None], float("-inf"))
        weight = F.dropout(score.softmax(-1, dtype=torch.float32).to(hidden.dtype), dropout)  # (B, H * G, T)
        seen = (weight @ hidden).view(B, H, G, C)
        # weights sum to one, unless some have fallen away
        bias = weight.sum(-1).view(B, H, G, 1) * value_bias if dropout else value_bias
        return seen @ value.mT + bias  # (B, H, G, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D)


@dataclass(frozen=True)
class Marks:
    """What a Longformer's mask says: the same for all layers of a forward pass, so it is read from the device once.

    Attributes:
        masked: bool [B, T], padding; None where there is none.
        gone: bool [B, T], keys that the window leaves out, padding and global ones.
        place: [B, G], positions of global tokens, those of others after them; None where no token is global.
        absent: bool [B, G], which of them stand for no global token; None where each sequence has G.
        shared: positions of the global tokens, where all sequences have the same.
    """

    masked: Tensor | None = None
    gone: Tensor | None = None
    place: Tensor | None = None
    absent: Tensor | None = None
    shared: tuple[int, ...] | None = None


_known_marks: Any = WeakTensorKeyDictionary()  # {mask: (its version, whether no token is global, marks)}


def _marks(mask: Tensor | None, is_global: Tensor | None) -> Marks:
    if mask is None:
        return Marks()
    known = _known_marks.get(mask)
    if known is None or known[:2] != (mask._version, is_global is None):
        known = mask._version, is_global is None, _read_marks(mask, is_global)
        _known_marks[mask] = known
    return known[2]


def _read_marks(mask: Tensor, is_global: Tensor | None) -> Marks:
    padding = mask < 0  # (B, T)
    masked = padding if bool(padding.any()) else None
    if is_global is None:
        return Marks(masked)
    count = is_global.sum(1)  # (B,)
    G, least = (int(number) for number in torch.stack([count.max(), count.min()]))
    if not G:
        return Marks(masked)
    place = is_global.int().argsort(dim=1, descending=True, stable=True)[:, :G]  # (B, G)
    absent = None if least == G else torch.arange(G, device=place.device) >= count[:, None]  # (B, G)
    shared = None
    if absent is None and bool((place == place[:1]).all()):
        shared = tuple(place[0].tolist())
    return Marks(masked, is_global if masked is None else is_global | padding, place, absent, shared)


@functools.lru_cache(maxsize=64)
def _window(one_side: int, positions: tuple[int, ...]) -> Pattern:
    """A window of so many tokens on each side, and global positions; a pattern is made once, not once a call."""
    window = Local(2 * one_side + 1)
    return window | Global(positions=positions) if positions else window


def _plain(layer: torch.nn.Module) -> bool:
    """Whether a layer is its weight and bias and nothing more, such as an adapter or a hook."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return type(layer) is torch.nn.Linear and layer.bias is not None and not hooked


class ConvertedBigBirdAttention(BigBirdBlockSparseAttention):
    """BigBird's attention as transformers has it: its plan of blocks, in which a block that is listed twice counts twice."""

    def bigbird_block_sparse_attention(
        self,
        query_layer: Tensor,
        key_layer: Tensor,
        value_layer: Tensor,
        band_mask: Any,
        from_mask: Tensor,
        to_mask: Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, None]:
        """q, k, v [B, H, T, D] -> ([B, T, H, D], no weights). from_mask [B, 1, T, 1], to_mask [B, 1, 1, T]: 1 for tokens."""
        table, bias = self._plan(query_layer.shape[2], query_layer.device)
        absent = to_mask[:, 0, 0] == 0  # (B, T)
        padding = absent if _any_padding(to_mask, absent) else None
        out = sparse_attention(
            query_layer,
            key_layer,
            value_layer,
            table,
            segments=_sides(padding, padding),
            scale=self.attention_head_size**-0.5,
            block_bias=bias,
        )
        return cast(Tensor, out).transpose(1, 2), None

    def _plan(self, length: int, device: torch.device) -> tuple[BlockTable, Tensor | None]:
        """Which blocks each row sees, and the log of how often (None: each once): the same for a length and mode."""
        plans = self.__dict__.setdefault("_plans", {})
        key = (length, self.training, device)
        if key not in plans:
            count = self._counts(length)  # (H, n, n)
            count = count[:1] if bool((count == count[:1]).all()) else count
            seen = count > 0
            table = BlockTable(seen if len(seen) > 1 else seen[0], self.block_size)
            plans[key] = table, count.clamp(min=1).log().to(device) if bool((count > 1).any()) else None
        return plans[key]

    def _counts(self, length: int) -> Tensor:
        """How often each row of blocks lists each block of keys, [H, n, n] float32."""
        n, heads = length // self.block_size, self.num_attention_heads
        row = torch.arange(n)
        count = ((row[:, None] - row[None, :]).abs() <= 1).float()
        count[:, 0] = count[:, -1] = 1  # the first and the last block are seen by all
        count[0] = count[-1] = 1  # and see all
        count = count.repeat(heads, 1, 1)
        drawn = torch.as_tensor(self._drawn(length), dtype=torch.long)  # (H, n - 2, blocks drawn)
        count[:, 1:-1].scatter_add_(2, drawn, torch.ones(drawn.shape))
        return count

    def _drawn(self, length: int) -> np.ndarray:
        """transformers' own draw of random blocks; numpy's global generator is left as it was."""
        size, blocks, heads = self.block_size, self.num_random_blocks, self.num_attention_heads
        state = np.random.get_state()
        try:
            np.random.seed(self.seed)
            if length in (1024, 3072, 4096):
                most = self.max_seqlen
                drawn = [
                    self._bigbird_block_rand_mask(most, most, size, size, blocks, last_idx=1024)[: length // size - 2]
                    for _ in range(heads)
                ]
            else:
                until, how_many = self._get_rand_attn_plan(length, size, blocks)
                drawn = self._bigbird_block_rand_mask_with_head(
                    from_seq_length=length,
                    to_seq_length=length,
                    from_block_size=size,
                    to_block_size=size,
                    num_heads=heads,
                    plan_from_length=until,
                    plan_num_rand_blocks=how_many,
                )
        finally:
            np.random.set_state(state)
        return np.stack(drawn)


CONVERTED: dict[type, type] = {
    LongformerSelfAttention: ConvertedLongformerAttention,
    BigBirdBlockSparseAttention: ConvertedBigBirdAttention,
}


_known_padding: Any = WeakTensorKeyDictionary()  # {mask: (its version, whether it hides any)}


def _with_keys(masked: Tensor) -> Tensor:
    """Padding, bool [B, T], but in sequences that are nothing else: nobody reads their rows, and a softmax of no keys would
    make every gradient NaN."""
    return masked & ~masked.all(1, keepdim=True)


def _any_padding(mask: Tensor, absent: Tensor) -> bool:
    """Whether a mask hides any token, read from the device once for all layers that it is handed to."""
    known = _known_padding.get(mask)
    if known is None or known[0] != mask._version:
        known = _known_padding[mask] = mask._version, bool(absent.any())
    return known[1]


def _no_weights(asked: bool) -> None:
    if asked:
        raise CallError("output_attentions=True: converted attention never holds its weights; load the model anew for them")


def _sides(
    no_queries: Tensor | None, no_keys: Tensor | None, q_len: int | None = None, k_len: int | None = None
) -> tuple[Tensor, Tensor] | None:
    """Segments that leave out queries and keys: bool [B, Tq] and [B, Tk], None where all are there."""
    if no_queries is None and no_keys is None:
        return None
    some = cast(Tensor, no_keys if no_queries is None else no_queries)
    shape = (some.shape[0], some.shape[1])
    q = some.new_zeros((shape[0], q_len or shape[1]), dtype=torch.int32)
    k = some.new_zeros((shape[0], k_len or shape[1]), dtype=torch.int32)
    q = q if no_queries is None else q.masked_fill(no_queries, NO_KEYS)
    return q, (k if no_keys is None else k.masked_fill(no_keys, HIDDEN))


def _joined(x: Any) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C)
