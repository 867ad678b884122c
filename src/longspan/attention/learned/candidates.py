"""The candidate connections of a head, which partition the (query, key) pairs: each pair has exactly one gate.

A pair belongs to the first of these that claims it:

1. residue classes: (i - j) % stride == 0, where the blocks of i and j are `stride_from` or more apart;
2. global blocks: the blocks differ, and the earlier of them is one of the first `global_blocks`;
3. relative block offsets: the query's block less the key's. Offsets of `offsets` blocks or more share one gate a side.

Legend: G gates, nb blocks of the longest sequence, i query position, j key position, b block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from longspan.attention.errors import wrong_setting
from longspan.values import is_whole


@dataclass(frozen=True)
class Candidates:
    """What a head may attend to, as a list of gates.

    Attributes:
        length: tokens of the longest sequence.
        causal: only keys at or before the query; offsets ahead have no gates then.
        block_size: b.
        offsets: relative offsets, from 0, with a gate of their own a side; None for all there are.
        global_blocks: blocks at the start with a gate each, over the pairs of theirs with other blocks.
        strides: one residue class each; a pair in several belongs to the first.
        stride_from: block offset from which residue classes claim pairs.

    Raises:
        ConfigError: by config key.
    """

    length: int
    causal: bool
    block_size: int = 64
    offsets: int | None = None
    global_blocks: int = 0
    strides: tuple[int, ...] = ()
    stride_from: int = 1

    def __post_init__(self) -> None:
        _whole("max_length", self.length, 1)
        _whole("block_size", self.block_size, 16)
        if self.block_size % 16:
            raise wrong_setting(
                "block_size", f"= {self.block_size} is not a multiple of 16, the smallest tile; give 16, 32, 64 or 128"
            )
        blocks = self.blocks
        exist = f"the {blocks} blocks of {self.block_size} in {self.length} tokens"
        if self.offsets is not None:
            _whole("offsets", self.offsets, 1)
            if self.offsets > blocks:
                raise wrong_setting("offsets", f"= {self.offsets} is more than {exist}; give 1 to {blocks}, or null")
        _whole("global_blocks", self.global_blocks, 0)
        if self.global_blocks > blocks:
            raise wrong_setting("global_blocks", f"= {self.global_blocks} is more than {exist}; give 0 to {blocks}")
        _whole("stride_from", self.stride_from, 1)
        for stride in self.strides:
            _whole("strides", stride, 2)
        if len(set(self.strides)) < len(self.strides):
            raise wrong_setting("strides", f"= {list(self.strides)} names a stride twice; give each once")
        counts = self.pairs(self.length)
        for n, stride in enumerate(self.strides):
            if counts[self.residue_gate(n)] == 0:
                raise wrong_setting(
                    "strides",
                    f"= {list(self.strides)}: no pair is left to {stride} among {exist} from "
                    f"attention.stride_from = {self.stride_from} on; give a shorter one, or fewer",
                )

    @property
    def blocks(self) -> int:
        """nb."""
        return -(-self.length // self.block_size)

    @property
    def reach(self) -> int:
        """The last offset gate's number a side."""
        last = self.blocks - 1
        return last if self.offsets is None else min(self.offsets, last)

    @property
    def names(self) -> tuple[str, ...]:
        """One name a gate: offsets from the nearest, then global blocks, then residue classes."""
        return _names(self)

    @property
    def meaning(self) -> dict[str, int]:
        """By config key, what tells apart candidates of as many gates. A longer sequence leaves gates what they are."""
        far = {f"strides[{n}]": stride for n, stride in enumerate(self.strides)}
        return {
            "block_size": self.block_size,
            "global_blocks": self.global_blocks,
            **({"stride_from": self.stride_from, **far} if far else {}),
        }

    @property
    def gates(self) -> int:
        """G."""
        return self.residue_gate(len(self.strides))

    def residue_gate(self, n: int) -> int:
        """Number of the gate of strides[n]."""
        return (self.reach + 1 if self.causal else 2 * self.reach + 1) + self.global_blocks + n

    def block_gates(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """[nb, nb] int64, for nb blocks of `length` tokens: the gate of each pair of blocks, residue classes aside."""
        return _block_gates(self, -(-length // self.block_size), torch.device(device))

    def pairs(self, length: int) -> Tensor:
        """[G] int64: pairs of each gate at this length; all together they are those of full attention."""
        return _pairs(self, length).clone()

    def far(self) -> Tensor:
        """[nb, nb] bool: the pairs of blocks in which residue classes claim pairs."""
        at = torch.arange(self.blocks)
        return (at[:, None] - at[None, :]).abs() >= self.stride_from


def _whole(key: str, value: object, least: int) -> None:
    if not is_whole(value, least):
        raise wrong_setting(key, f"= {value!r}; give a whole number, {least} or more")


def offset_gate(candidates: Candidates, offset: Tensor) -> Tensor:
    """Gates of relative block offsets: 0 the own block, then 1 and on backwards; ahead they alternate with them."""
    near = offset.abs().clamp(max=candidates.reach)
    if candidates.causal:
        return near
    return torch.where(offset < 0, 2 * near, (2 * near - 1).clamp(min=0))


@lru_cache(maxsize=64)
def _names(c: Candidates) -> tuple[str, ...]:
    shared = c.reach < c.blocks - 1
    offsets = ["offset 0"]
    for n in range(1, c.reach + 1):
        more = "+" if shared and n == c.reach else ""
        offsets += [f"offset {n}{more}"] if c.causal else [f"offset {n}{more}", f"offset -{n}{more}"]
    return (*offsets, *(f"global {n}" for n in range(c.global_blocks)), *(f"stride {s}" for s in c.strides))


@lru_cache(maxsize=64)
def _block_gates(c: Candidates, blocks: int, device: torch.device) -> Tensor:
    # Made outside inference mode: a cached tensor must serve training too.
    with torch.inference_mode(False):
        at = torch.arange(blocks, device=device)
        gates = offset_gate(c, at[:, None] - at[None, :])
        earlier = torch.minimum(at[:, None], at[None, :])
        # A block's pairs with itself stay with offset 0: the first queries have nothing else to see.
        takes_part = (earlier < c.global_blocks) & (at[:, None] != at[None, :])
        return torch.where(takes_part, c.residue_gate(-c.global_blocks) + earlier, gates)


@lru_cache(maxsize=256)
def _pairs(c: Candidates, length: int) -> Tensor:
    # On the CPU whatever torch.device is the default: what is kept serves modules on other devices too.
    with torch.device("cpu"):
        return _counted_pairs(c, length)


def _counted_pairs(c: Candidates, length: int) -> Tensor:
    """By distances d = i - j >= 0, mirrored unless causal, in O(length * (global_blocks + 1))."""
    b = c.block_size
    d = torch.arange(length)
    residue = torch.full_like(d, -1)
    for n in reversed(range(len(c.strides))):
        residue[d % c.strides[n] == 0] = n
    out = torch.zeros(c.gates, dtype=torch.int64)

    def below(end: Tensor) -> Tensor:
        """Earlier positions under `end` whose distance stays within d // b blocks, a pair of blocks (d // b, rest)."""
        end = end.clamp(min=0)
        plain = b - d % b
        return end // b * plain + torch.minimum(end % b, plain)

    edges = [n * b for n in range(c.global_blocks + 1)]
    for n, start in enumerate(edges):
        last = n == c.global_blocks
        stop = length - d if last else torch.minimum(length - d, torch.tensor(edges[n + 1]))
        start_t = torch.minimum(torch.full_like(d, start), length - d)
        near = below(stop) - below(start_t)  # their blocks are d // b apart
        total = (stop - start_t).clamp(min=0)
        for offset, count in ((d // b, near), (d // b + 1, total - near)):
            claimed = (residue >= 0) & (offset >= c.stride_from)
            for sign in (1,) if c.causal else (1, -1):
                own = offset_gate(c, sign * offset)
                if not last:
                    own = torch.where(offset == 0, own, c.residue_gate(n - c.global_blocks))
                gate = torch.where(claimed, c.residue_gate(0) + residue, own)
                # distance 0 is its own mirror image
                out.index_add_(0, gate, count if sign > 0 else count * (d > 0))
    return out
