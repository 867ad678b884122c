"""The base of variants that choose pairs by content: it checks their settings and calls.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan.attention.decoding import check_keys
from longspan.attention.documents import attend_by_document
from longspan.attention.errors import as_fraction, not_flash, wrong_setting
from longspan.attention.place import check_heads
from longspan.attention.weights import ShowsWeights
from longspan.config.errors import CallError
from longspan.cost import Cost
from longspan.functional import BACKENDS, sparse_attention
from longspan.patterns import Pattern
from longspan_kernels.block_sparse import DeviceLayout
from longspan_kernels.launch import cast_as_products, without_autocast


class ContentAttention(ShowsWeights):
    """Base of the variants whose pairs depend on what the tokens hold; there is no fixed pattern.

    A subclass has `attend(q, k, v, lengths, segments)` and `cost(length)`. What `attend` gives a token follows from that
    token's own sequence, up to its length: neither from padding nor from what shares the batch. Of packed documents each is
    attended as a sequence of its own, and `attend` gets segments=None.

    Args:
        heads, kv_heads, head_dim: H, Hkv (it divides H) and D (16 to 256).
        causal: only keys at or before the query.
        dropout: share of attention weights that fall away, in training only.
        backend: "auto", "triton" or "blocked" (plain torch).

    Raises:
        ConfigError: a setting that cannot work, by its config key.
    """

    pattern = None
    has_kernels = True  # False for what plain torch computes on any device

    def __init__(
        self,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int,
        causal: bool,
        layer: int = 0,
        max_length: int | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise wrong_setting("backend", f"= {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
        if backend == "dense":
            raise wrong_setting("backend", "= 'dense' knows no pairs that are chosen at run time; give auto, triton or blocked")
        not_flash(backend, "pairs that are chosen at run time")
        if backend == "triton" and not self.has_kernels:
            raise wrong_setting(
                "backend", f"= 'triton': {type(self).__name__} is plain torch on any device; give auto or blocked"
            )
        kv_heads = check_heads(heads, kv_heads)
        self.heads, self.kv_heads, self.head_dim, self.causal = heads, kv_heads, head_dim, causal
        # What the model projects for it: some variants want more than Hkv of each.
        self.key_heads = self.value_heads = kv_heads
        self.dropout, self.backend = as_fraction("dropout", dropout), backend

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """q [B, H, T, D], k and v [B, Hkv, T, D] -> [B, H, T, D].

        Args:
            lengths: [B] int, tokens of each sequence, taken as 0 below and as T above; outputs past it are 0.
            segments: [B, T] int, packed documents, each as if it stood alone.

        Raises:
            CallError: tensors that do not fit this module.
        """
        self._check(q, k, v, lengths, segments)
        if not q.numel():
            return q.clone()
        q, k, v = cast_as_products(q, k, v)
        lengths = None if lengths is None else lengths.to(q.device).clamp(0, q.shape[2])
        segments = None if segments is None else segments.to(q.device)
        # From here on precision is chosen by hand: autocast would choose blocks and hash in half precision.
        with without_autocast(q):
            if segments is None:
                return self.attend(q, k, v, lengths, None)
            return attend_by_document(lambda q, k, v, ends: self.attend(q, k, v, ends, None), q, k, v, lengths, segments)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        raise NotImplementedError

    def cost(self, length: int) -> Cost:
        raise NotImplementedError

    def held_tokens(self, length: int) -> int:
        """Bytes of all keys and values, two a number: what decoding holds where any token may be seen again."""
        return 4 * self.key_heads * self.head_dim * length

    @property
    def dropped(self) -> float:
        """Share of weights that fall away now."""
        return self.dropout if self.training else 0.0

    def _check(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> None:
        B, H, T, D = q.shape
        name = type(self).__name__
        if (H, v.shape[1], D) != (self.heads, self.value_heads, self.head_dim):
            raise CallError(
                f"q {tuple(q.shape)} and v {tuple(v.shape)} do not fit {name}; "
                f"give [B, {self.heads}, T, {self.head_dim}] and [B, {self.value_heads}, T, {self.head_dim}]"
            )
        if v.shape[2] != T:
            raise CallError(f"{T} queries and {v.shape[2]} keys: {name} is self-attention; give as many of both")
        check_keys(self, q, k)
        if isinstance(lengths, tuple):
            raise CallError(f"lengths is a pair: {name} is self-attention; give one tensor [B]")
        for what, given, shape in (("lengths", lengths, (B,)), ("segments", segments, (B, T))):
            if given is not None and tuple(given.shape) != shape:
                raise CallError(f"{what} has shape {tuple(given.shape)}; give {shape}")

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}, causal={self.causal}, "
            f"dropout={self.dropout}, backend={self.backend}"
        )


def with_lse(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | DeviceLayout, **call: Any) -> tuple[Tensor, Tensor]:
    """`sparse_attention`, with the log-sum-exp: a part of the pairs, to be merged with others."""
    out, lse = sparse_attention(q, k, v, pattern, return_lse=True, **call)
    return out, lse


def for_all_heads(x: Tensor, heads: int) -> Tensor:
    """x [B, Hkv, T, D], each head repeated for the query heads that share it; x itself where each has its own."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [B, H, T, D] with zeros where no token is: what lies there may be anything, NaN included."""
    if lengths is None:
        return x
    beyond = torch.arange(x.shape[2], device=x.device) >= lengths[:, None]  # (B, T)
    return x.masked_fill(beyond[:, None, :, None], 0.0)
