"""Calls of sparse_attention of every kind, drawn from a number: patterns, compositions, limits, dtypes, sizes, strides, scores.

Legend: B batch, H heads, Hkv key/value heads, T tokens (Tq, Tk), D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

from longspan.patterns import (
    BigBird,
    BlockTable,
    Fixed,
    Full,
    Global,
    Local,
    Local2D,
    Longformer,
    Pattern,
    PerHead,
    Predicate,
    Strided,
    Without,
)
from longspan.patterns import (
    Random as RandomBlocks,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCORES = (0.01, 1.0, 1.0, 1.0, 30.0, 1e3, 1e6)  # sizes that scores are about
CALLS_A_PATTERN = 20  # drawn one after another: compiling a layout takes longer than a call


@dataclass
class Drawn:
    """One call: what sparse_attention takes, the gradients that come back, and words for the kinds it is of."""

    seed: int
    pattern: Pattern
    q: Tensor
    k: Tensor
    v: Tensor
    call: dict[str, Any]
    dout: Tensor
    dlse: Tensor
    score: float
    exact: bool  # scores are whole numbers times a power of two, so that no sum rounds
    kinds: list[str] = field(default_factory=list)

    @property
    def has_own_lengths(self) -> bool:
        """Whether the pattern of each sequence follows from its own length."""
        both_ways = not self.call["causal"] and self.q.shape[2] == self.k.shape[2]
        return both_ways and self.call.get("lengths") is not None and self.pattern.depends_on_length(False)

    def __str__(self) -> str:
        tensors = {name: (x if x is None or isinstance(x, (int, float, bool)) else "given") for name, x in self.call.items()}
        return (
            f"call {self.seed}: {self.pattern}, q {tuple(self.q.shape)} {tuple(self.q.stride())}, k {tuple(self.k.shape)} "
            f"{tuple(self.k.stride())}, {self.q.dtype}, score {self.score}, exact {self.exact}, {tensors}"
        )


class Calls:
    """Draws calls by number: the same number is the same call, in whatever order they are drawn."""

    def __init__(self, dtypes: tuple[str, ...], longest: int, widest: int = 128, most: int = 4, bias_step: int = 1):
        self.dtypes, self.longest, self.widest, self.most = dtypes, longest, widest, most
        self.bias_step = bias_step  # blocks with a bias are a multiple of it

    def __call__(self, number: int) -> Drawn:
        whole = Random(number // CALLS_A_PATTERN * 1_000_003)
        heads = min(self.most, whole.choice([1, 2, 2, 3, 4]))
        q_len = self._length(whole)
        k_len = whole.choice([q_len, q_len, q_len, q_len + whole.randrange(self.longest // 2), self._length(whole)])
        causal = whole.random() < 0.4 and q_len <= k_len
        pattern = composed(whole, heads, max(q_len, k_len))
        return self._call(Random(number * 7_368_787 + 1), number, pattern, heads, q_len, k_len, causal)

    def _length(self, random: Random) -> int:
        kind = random.random()
        if kind < 0.02:
            return 0
        if kind < 0.15:
            return random.choice([1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65][: 11 if self.longest > 65 else 8])
        return random.randrange(1, self.longest if kind > 0.9 else min(self.longest, 60))

    def _call(self, r: Random, number: int, pattern: Pattern, heads: int, q_len: int, k_len: int, causal: bool) -> Drawn:
        g = torch.Generator().manual_seed(number)
        batch = 0 if r.random() < 0.01 else min(self.most, r.choice([1, 1, 1, 2, 3]))
        shared = r.choice([n for n in (1, 2, 3, 4) if heads % n == 0])
        width = r.choice([w for w in (16, 16, 16, 17, 24, 32, 40, 64, 128) if w <= self.widest])
        name = r.choice(self.dtypes)
        score, exact = r.choice(SCORES), r.random() < 0.3
        if name == "float16":
            score = min(score, 1e3)
        call: dict[str, Any] = {"causal": causal}
        scale = r.choice([None, None, 0.5, 1.0, -0.25, 0.0]) if not exact else r.choice([1.0, 0.25, -0.5])
        call["scale"] = scale
        kinds = [type(pattern).__name__, name, f"score {score:g}"]
        q, k, v = (
            tensor(r, g, (batch, n, length, width), DTYPES[name], kinds)
            for n, length in ((heads, q_len), (heads // shared, k_len), (heads // shared, k_len))
        )
        if exact:
            size = 2.0 ** round(torch.tensor(max(score, 1.0)).log2().item() / 2)
            q, k = (torch.randint(-2, 3, x.shape, generator=g).to(x.dtype) * size for x in (q, k))
            kinds.append("exact scores")
        else:
            q, k = q * score**0.5, k * score**0.5
        if shared > 1:
            kinds.append("grouped heads")
        self._limits(r, g, call, kinds, batch, q_len, k_len)
        if r.random() < 0.25:
            call["dropout_p"] = r.choice([0.1, 0.5, 0.9])
            kinds.append("dropout")
        self._bias(r, g, call, kinds, pattern, heads, q_len, k_len, DTYPES[name])
        dout = tensor(r, g, (batch, heads, q_len, width), DTYPES[name], [])
        dlse = torch.randn(batch, heads, q_len, generator=g) * r.choice([0.0, 1.0])
        if causal:
            kinds.append("causal")
        if not q.numel() or not k.numel():
            kinds.append("zero size")
        drawn = Drawn(number, pattern, q, k, v, call, dout, dlse, score, exact, kinds)
        if drawn.has_own_lengths:
            kinds.append("own lengths")
            if call.pop("dropout_p", None):  # which draws a seed for each length
                kinds.remove("dropout")
        return drawn

    def _limits(self, r: Random, g: torch.Generator, call: dict, kinds: list[str], batch: int, q_len: int, k_len: int) -> None:
        def drawn(most: int) -> Tensor:
            found = torch.randint(-2, most + 3, (batch,), generator=g)
            return found.to(r.choice([torch.int32, torch.int64])) if r.random() < 0.8 else found * (1 << 33)

        if r.random() < 0.3:
            pair = (drawn(q_len), drawn(k_len))
            one = pair[0] if q_len == k_len and r.random() < 0.6 else None
            call["lengths"] = pair if one is None else one
            kinds.append("lengths")
        if r.random() < 0.3:
            most = r.choice([1, 2, 5])
            pair = tuple(torch.randint(0, most + 1, (batch, n), generator=g).sort(-1).values for n in (q_len, k_len))
            call["segments"] = pair if q_len != k_len or r.random() < 0.3 else pair[0]
            kinds.append("segments")

    def _bias(
        self,
        r: Random,
        g: torch.Generator,
        call: dict,
        kinds: list[str],
        pattern: Pattern,
        heads: int,
        q_len: int,
        k_len: int,
        dtype: torch.dtype,
    ) -> None:
        if not isinstance(pattern, (BigBird, BlockTable)) or r.random() < 0.4:
            return
        if pattern.block_size % self.bias_step:
            return
        columns = -(-k_len // pattern.block_size)
        rows = columns - (k_len - q_len) // pattern.block_size
        exact = torch.promote_types(dtype, torch.float32)
        bias = torch.randn(r.choice([1, heads]), rows, columns, generator=g, dtype=exact)
        if r.random() < 0.3:
            bias = bias.masked_fill(torch.rand(bias.shape, generator=g) < 0.2, float("-inf"))
        call["block_bias"] = bias
        kinds.append("block bias")


def tensor(r: Random, g: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, kinds: list[str]) -> Tensor:
    """Normal numbers [B, H, T, D] in memory as models leave them, contiguous or not."""
    B, H, T, D = shape
    kind = r.randrange(6)
    if kind == 1:  # a fused projection
        x = torch.randn(B, T, H, D, generator=g).to(dtype).transpose(1, 2)
    elif kind == 2:  # a slice of wider rows
        x = torch.randn(B, H, T, D + 3, generator=g).to(dtype)[..., 2 : 2 + D]
    elif kind == 3:  # every other token
        x = torch.randn(B, H, 2 * T, D, generator=g).to(dtype)[:, :, ::2]
    elif kind == 4:  # width first
        x = torch.randn(B, H, D, T, generator=g).to(dtype).transpose(2, 3)
    elif kind == 5:  # one head seen as many
        x = torch.randn(B, 1, T, D, generator=g).to(dtype).expand(B, H, T, D)
    else:
        x = torch.randn(B, H, T, D, generator=g).to(dtype)
    if kind and "non-contiguous" not in kinds:
        kinds.append("non-contiguous")
    return x


def family(r: Random, heads: int, length: int) -> Pattern:
    """One pattern of any family."""
    size = r.choice([4, 8, 16, 16, 32])
    blocks = max(1, -(-length // size))
    a, b = r.randrange(2, 9), r.randrange(1, 5)
    table = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(r.randrange(1 << 30))) < 0.4
    stride = r.randrange(2, 20)
    return r.choice(
        [
            lambda: Full(),
            lambda: Local(r.randrange(1, 40), r.choice([1, 1, 2, 5])),
            lambda: Strided(stride),
            lambda: grid(r, length),
            lambda: Fixed(stride, r.randrange(1, stride + 1)),
            lambda: Global(first=r.randrange(1, 9)),
            lambda: Global(positions=tuple(sorted({r.randrange(80) for _ in range(3)}))),
            lambda: RandomBlocks(r.randrange(1, 4), size, r.randrange(9)),
            lambda: BlockTable(table, size),
            lambda: Predicate(lambda B, h, i, j, a=a, b=b: (i * b + j * 3 + h) % a == 0),
            lambda: BigBird(size, r.choice([1, 3]), r.randrange(3), r.randrange(3), r.randrange(9)),
            lambda: Longformer(r.randrange(1, 20), tuple(sorted({r.randrange(60) for _ in range(2)}))),
        ]
    )()


def grid(r: Random, length: int) -> Local2D:
    """Neighbours in a grid that holds `length` tokens."""
    width = r.randrange(1, 30)
    height, window, dilation = -(-max(length, 1) // width) + r.randrange(3), r.randrange(1, 8), r.choice([1, 1, 2, 3])
    fits = (2 * (window // 2) + 1) * dilation <= min(height, width)
    return Local2D(height, width, window, dilation, r.choice(["cut", "shift"]) if fits else "cut")


def composed(r: Random, heads: int, length: int) -> Pattern:
    """A pattern of one family, or several joined, intersected, taken away, or one a head."""
    kind = r.random()
    one = lambda: family(r, heads, length)  # noqa: E731
    if kind < 0.55:
        return one()
    if kind < 0.7:
        return one() | one()
    if kind < 0.8:
        return one() & one()
    if kind < 0.85:
        return (one() | one()) & one()
    if kind < 0.9:
        return Without(one(), one())
    return PerHead([one() if r.random() < 0.7 else one() | one() for _ in range(heads)])
