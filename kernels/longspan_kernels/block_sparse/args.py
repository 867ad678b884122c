"""Declares once what a call takes beside q, k and v: its options, and which pairs it attends to.

Custom ops take plain tensors and numbers; `packed` lays both out for them, `unpacked` reads them back, and the schema follows
from the declarations. Legend: B batch, H heads, T tokens (Tq, Tk).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from longspan_kernels.block_sparse.layout import DeviceLayout


class Options(NamedTuple):
    """What a call adds to its pairs.

    Attributes:
        scale: factor of the scores.
        q_lengths, k_lengths: [B] int; tokens at or past it do not exist.
        q_segments, k_segments: [B, Tq] and [B, Tk] int; a pair also needs equal segments.
        dropout_p, seed: chance of a weight to fall away, and the int64 scalar that its bits come from.
        bias, bias_block: [H or 1, query blocks, key blocks], added to scaled scores; side of its blocks.
    """

    scale: float
    q_lengths: Tensor | None = None
    k_lengths: Tensor | None = None
    q_segments: Tensor | None = None
    k_segments: Tensor | None = None
    dropout_p: float = 0.0
    seed: Tensor | None = None
    bias: Tensor | None = None
    bias_block: int = 0

    @property
    def per_batch(self) -> bool:
        """Whether batch elements see different pairs."""
        return self.q_lengths is not None or self.k_lengths is not None or self.q_segments is not None


class Source(NamedTuple):
    """Which pairs a call attends to: those of a registered pattern, or those of the blocks that a `DeviceLayout` lists.

    `key` names the pattern; it is empty for listed blocks, to which all fields after `causal` belong.
    """

    key: str
    causal: bool
    blocks: Tensor | None = None
    counts: Tensor | None = None
    block_q: int = 0
    block_k: int = 0
    q_order: Tensor | None = None
    k_order: Tensor | None = None
    excluded: Tensor | None = None

    @classmethod
    def listed(cls, layout: DeviceLayout, batch: int) -> Source:
        """The blocks of a device layout, for `batch` sequences."""
        excluded = None if layout.excluded is None else layout.excluded.expand(batch, -1, -1)
        sides = layout.block_q, layout.block_k, layout.q_order, layout.k_order
        return cls("", layout.causal, layout.index, layout.count, *sides, excluded)

    def device_layout(self, q_len: int, k_len: int) -> DeviceLayout:
        """The device layout of listed blocks."""
        assert self.blocks is not None and self.counts is not None
        orders = self.q_order, self.k_order, self.excluded
        return DeviceLayout(self.blocks, self.counts, self.block_q, self.block_k, q_len, k_len, self.causal, *orders)


_DECLARED = {**Options.__annotations__, **Source.__annotations__, "backend": "str", "with_backward": "bool"}
_KINDS = {"Tensor | None": "Tensor?", "float": "float", "int": "SymInt", "bool": "bool", "str": "str"}
SCHEMA = ", ".join(f"{_KINDS[getattr(kind, '__forward_arg__', kind)]} {name}" for name, kind in _DECLARED.items())
TENSORS = tuple(place for place, part in enumerate(SCHEMA.split(", ")) if part.startswith("Tensor?"))
BIAS = list(_DECLARED).index("bias")


def packed(options: Options, source: Source, backend: str, with_backward: bool) -> tuple[Any, ...]:
    """The arguments of the custom ops that follow their tensors [B, H, T, D], in the order of SCHEMA."""
    return (*options, *source, backend, with_backward)


def unpacked(arguments: tuple[Any, ...]) -> tuple[Options, Source, str, bool]:
    """What `packed` laid out: options, source, backend, and whether a backward pass may follow."""
    first, second = len(Options._fields), len(Options._fields) + len(Source._fields)
    backend, with_backward = arguments[second:]
    return Options(*arguments[:first]), Source(*arguments[first:second]), backend, with_backward
