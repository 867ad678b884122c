"""Decoding: what every causal attention offers beside its forward pass, a cache and one call for new tokens.

Legend: B batch, H heads, Hkv key/value heads, n new tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from longspan.config.errors import CallError
from longspan.values import is_whole


class AttentionCache:
    """What one attention module keeps of the tokens so far.

    A subclass keeps tensors in its attributes (in lists, dicts or parts that are caches themselves, too) and counts tokens
    in `positions`.

    Attributes:
        positions: [B] int64, how many tokens each sequence has had: the position of its next one.
        batch: B.
    """

    def __init__(self, batch: int, device: torch.device | str | None = None) -> None:
        if not is_whole(batch, 1):
            raise CallError(f"batch = {batch!r}; give a number of sequences, 1 or more")
        self.batch = batch
        self.positions = torch.zeros(batch, dtype=torch.int64, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of every tensor that is kept, positions and other numbers included."""
        return sum(x.numel() * x.element_size() for x in _tensors(vars(self)))

    def select(self, rows: Tensor) -> None:
        """Goes on with the sequences [B] of these numbers; a sequence may be taken more than once.

        Every tensor that a cache keeps has a sequence in each row, but for those of a subclass that says so itself.
        """
        for name, value in vars(self).items():
            setattr(self, name, _selected(value, rows, self.batch))


@contextmanager
def as_in_evaluation(module: nn.Module) -> Iterator[None]:
    """No dropout, no noise and no gradients inside."""
    before = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(before)


def _selected(value: Any, rows: Tensor, batch: int) -> Any:
    if isinstance(value, Tensor):
        return value.index_select(0, rows) if value.dim() and value.shape[0] == batch else value
    if isinstance(value, AttentionCache):
        value.select(rows)
    elif isinstance(value, dict):
        return {key: _selected(part, rows, batch) for key, part in value.items()}
    elif isinstance(value, (list, tuple)):
        return type(value)(_selected(part, rows, batch) for part in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, AttentionCache):
        yield from _tensors(vars(value))
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


class Decodes(nn.Module):
    """Base of the attention modules: `new_cache` and `decode`, which causal variants implement."""

    heads: int
    kv_heads: int
    head_dim: int
    causal: bool

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionCache:
        """An empty cache for `batch` sequences; `dtype` is that of the keys and values to come, float32 unless given.

        Raises:
            CallError: an attention that cannot decode; the message says why.
        """
        raise CallError(f"{type(self).__name__} cannot decode: {self.undecodable or 'it has no cache'}")

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: Any, *, lengths: Tensor | None = None) -> Tensor:
        """The outputs [B, H, n, D] of n new tokens, equal to those of one full forward pass over all tokens so far.

        The cache takes the tokens in. It is as in evaluation, without dropout, and without gradients.

        Args:
            q: [B, H, n, D], n >= 1; k, v: [B, Hkv, n, D]. Rotary positions are in already, those of the whole sequence.
            lengths: [B] int, how many of the n tokens each sequence has, for prompts of unequal lengths, which are padded
                on the right: tokens from there on do not exist, get output 0 and do not enter the cache. None for all n;
                taken as 0 below and as n above.

        Raises:
            CallError: tensors that do not fit the cache, or more tokens than the module was made for.
        """
        raise CallError(f"{type(self).__name__} cannot decode: {self.undecodable or 'it has no cache'}")

    @property
    def undecodable(self) -> str | None:
        """Why this attention cannot decode, None where it can."""
        if not getattr(self, "causal", False):
            return "it looks both ways; build it with causal=True, in a Decoder"
        return None

    def check_decode(self, q: Tensor, k: Tensor, v: Tensor, cache: Any, lengths: Tensor | None = None) -> Tensor | None:
        """The lengths as `decode` uses them: on the device, taken as 0 below and as n above.

        Raises:
            CallError: tensors that do not fit this module or its cache.
        """
        if not isinstance(cache, AttentionCache):
            raise CallError(f"cache is a {type(cache).__name__}; give one of this module's new_cache({len(q)})")
        B, _, n, _ = q.shape if q.dim() == 4 else (0, 0, 0, 0)
        values = getattr(self, "value_heads", self.kv_heads)
        fits = (B, self.heads, n, self.head_dim), (B, values, n, self.head_dim)
        if cache.batch != B or n < 1 or tuple(q.shape) != fits[0] or tuple(v.shape) != fits[1]:
            raise CallError(
                f"q {tuple(q.shape)} and v {tuple(v.shape)} do not fit a cache of {cache.batch} sequences; give "
                f"[{cache.batch}, {self.heads}, n, {self.head_dim}] and [{cache.batch}, {values}, n, {self.head_dim}], "
                "n of 1 or more"
            )
        check_keys(self, q, k)
        if lengths is None:
            return None
        if not isinstance(lengths, Tensor) or tuple(lengths.shape) != (B,):
            given = f"has shape {tuple(lengths.shape)}" if isinstance(lengths, Tensor) else f"is {lengths!r}"
            raise CallError(f"lengths {given}; give a tensor with one number a sequence, [{B}]")
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise CallError(f"lengths is {lengths.dtype}; give whole numbers")
        return lengths.to(q.device, torch.int64).clamp(0, n)


def check_keys(module: Any, q: Tensor, k: Tensor) -> None:
    """Raises CallError where k does not fit a module that takes q [B, H, T, D]; one that shares q and k takes none."""
    heads = getattr(module, "key_heads", module.kv_heads)
    right = (q.shape[0], heads, q.shape[2], q.shape[3])
    if tuple(k.shape) != right and not getattr(module, "shares_qk", False):
        raise CallError(f"k has shape {tuple(k.shape)}; with this q {type(module).__name__} takes {right}")
