"""A pass over the tokens block by block: what a block reads, what remains of the past in it, and where its results belong.

Only a block of few chunks is held at a time, so that it stays in a CPU's cache, and results are written where they belong: what
leaves the cache, and fresh memory, cost as much as the products do.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D width of q and k, Dv width of v; a block has N chunks of C tokens,
M = B * H * N.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 64
FACTORED = -20.0  # what the log decays of a chunk add up to, at least, where they are taken into its tokens
FAINTEST = -100.0  # log decays below are taken as this: exp(-100) is 0 in float32, and differences of -inf are NaN


@dataclass
class Call:
    """What a pass over the tokens reads, and how it cuts them."""

    shape: tuple[int, int, int]  # B, H, T
    dtype: torch.dtype  # of the computation: float32 or wider
    log_decay: Tensor | None  # [B, H, T]
    runs: Tensor | None  # [B, T], a number that never falls; tokens of different runs do not meet
    lengths: Tensor | None  # [B]
    at_once: int  # chunks of a block
    factored: bool = False  # see `Block`

    @classmethod
    def of(
        cls,
        q: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        runs: Tensor | None,
        lengths: Tensor | None,
        elements: Mapping[str, int],
        may_factor: bool = False,
    ) -> Call:
        """`elements`: of what a block may hold for its chunks, their scores and their states, on a "cpu" and on an "other".

        With `may_factor`, decays that add up to little in every chunk are taken into its tokens. A CPU alone can look.
        """
        B, H, T, D = q.shape
        at_once = elements["cpu" if q.device.type == "cpu" else "other"] // (B * H * max(CHUNK * CHUNK, D * v.shape[-1]))
        if log_decay is not None and lengths is not None:
            beyond = torch.arange(T, device=q.device) >= lengths[:, None]
            log_decay = log_decay.masked_fill(beyond[:, None], 0.0)
        factored = may_factor and runs is None and q.device.type == "cpu" and T > 0
        if log_decay is None:
            factored = False
        elif factored:
            chunks = torch.nn.functional.pad(log_decay, (0, -T % CHUNK)).unflatten(-1, (-1, CHUNK)).sum(-1)
            factored = bool((chunks >= FACTORED).all())
        exact = torch.promote_types(q.dtype, torch.float32)
        return cls((B, H, T), exact, log_decay, runs, lengths, max(1, at_once), factored)

    @property
    def count(self) -> int:
        """How many blocks there are."""
        T = self.shape[2]
        return -(-(T // CHUNK) // self.at_once) + (T % CHUNK > 0)

    def blocks(self, backwards: bool = False) -> Iterator[Block]:
        """Blocks of whole chunks, then one of the tokens that are left; `backwards` from the last to the first."""
        T = self.shape[2]
        whole = T - T % CHUNK
        step = CHUNK * self.at_once
        starts = [(first, min(step, whole - first), CHUNK) for first in range(0, whole, step)]
        if whole < T:
            starts.append((whole, T - whole, T - whole))
        for first, count, C in reversed(starts) if backwards else starts:
            yield Block(self, slice(first, first + count), C)


class Block:
    """A block's place, and what remains of the past in it: None where nothing is forgotten.

    Attributes:
        into: [M, C, 1] of the state before a chunk at each of its tokens. onto: [M, C, 1] of each token at the chunk's end.
        within: [M, C, C] of each token at each later one, 0 above the diagonal.
        kept: [B * H, N, 1, 1] of the state over each chunk.
        falls, rises: [M, C, 1], exp(G) and exp(-G) of the sums G of log decays in a chunk, where a call is factored: with
            queries and keys times these there is no decay within the chunk, and `into`, `onto` and `within` are None.
    """

    falls: Tensor | None = None
    rises: Tensor | None = None
    into: Tensor | None = None
    onto: Tensor | None = None
    within: Tensor | None = None
    kept: Tensor | None = None

    def __init__(self, call: Call, here: slice, C: int) -> None:
        self.call, self.here, self.C = call, here, C
        B, H, _ = call.shape
        g = None if call.log_decay is None else call.log_decay[:, :, here]
        if call.factored and g is not None:
            g = g.to(call.dtype).reshape(B * H, -1, C, 1).cumsum(2)
            self.falls, self.rises = (x.exp().flatten(0, 1) for x in (g, -g))
            self.kept = g[:, :, -1:].exp()
            return
        r = None if call.runs is None else call.runs[:, here]
        before = None if call.runs is None else call.runs[:, max(0, here.start - 1), None]
        into, onto, within, kept = decays(g, r, before, C, call.dtype)
        if within is not None and into is not None and onto is not None and kept is not None:
            N = (here.stop - here.start) // C
            self.within = within.expand(B, H, N, C, C).reshape(-1, C, C)
            self.into, self.onto = (x.expand(B, H, N, C).reshape(-1, C, 1) for x in (into, onto))
            self.kept = kept.expand(B, H, N).reshape(B * H, N, 1, 1)

    def read(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """[M, C, width] of x [B, H or Hkv, T, width], in the computation's dtype, once a query head, 0 beyond the lengths."""
        H = self.call.shape[1]
        part = x[:, :, self.here].to(self.call.dtype)
        if self.call.lengths is not None:
            tokens = torch.arange(self.here.start, self.here.stop, device=x.device)
            part = part.masked_fill((tokens >= self.call.lengths[:, None])[:, None, :, None], 0.0)
        if part.shape[1] != H:
            part = part.repeat_interleave(H // part.shape[1], 1)
        part = part.reshape(-1, self.C, x.shape[-1])
        return part if scale == 1.0 else part * scale

    def queries(self, q: Tensor) -> Tensor:
        """As `read`; factored, times what the past has fallen to at each of them."""
        x = self.read(q)
        return x if self.falls is None else x * self.falls

    def keys(self, k: Tensor) -> Tensor:
        """As `read`; factored, times what makes up for the fall until each of them."""
        y = self.read(k)
        return y if self.rises is None else y * self.rises

    def write(self, to: Tensor, part: Tensor, scale: float = 1.0) -> None:
        """Puts [M, C, width] where it belongs in `to` [B, H or Hkv, T, width]; several query heads of one key head add up."""
        B, H, _ = self.call.shape
        if scale != 1.0:
            part = part.mul_(scale)
        part = part.reshape(B, H, -1, part.shape[-1])
        if to.shape[1] != H:
            part = part.unflatten(1, (to.shape[1], -1)).sum(2)
        to[:, :, self.here].copy_(part)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """x_i . y_j of what j leaves at i, 0 for later j: [M, C, C]."""
        found = torch.bmm(x, y.mT)
        return found.tril_() if self.within is None else found.mul_(self.within)

    def add(self, to: Tensor, x: Tensor, y: Tensor, sign: float = 1.0) -> None:
        """Adds the dot products of x and y [M, C, width] to `to` [B, H, T]."""
        B, H, _ = self.call.shape
        to[:, :, self.here].add_((x * y).sum(-1).view(B, H, -1), alpha=sign)

    def run(self, state: Tensor, y: Tensor, z: Tensor, backwards: bool = False) -> Tensor:
        """The state [M, D, Dv] beside each chunk, of y [M, C, D] and z [M, C, Dv]; `state` [B * H, D, Dv] becomes the next.

        Forwards it is the state before each chunk, and tokens are added as they remain at its end; backwards it is that after
        it, and tokens are added as the state before is read by them. Factored, it decays after tokens are added, backwards
        before it is read.
        """
        remains = self.into if backwards else self.onto
        yT = (y if remains is None else y * remains).mT
        N = len(y) // max(1, len(state))
        factored = self.falls is not None
        added = None if N == 1 else torch.bmm(yT, z).unflatten(0, (-1, N))  # (B * H, N, D, Dv)
        states = state[:, None] if added is None else torch.empty_like(added)
        for n in reversed(range(N)) if backwards else range(N):
            if self.kept is not None and factored and backwards:
                state.mul_(self.kept[:, n])
            if added is None:
                states = state[:, None].clone()
            else:
                states[:, n] = state
            if self.kept is not None and not factored:
                state.mul_(self.kept[:, n])
            if added is None:
                state.baddbmm_(yT, z)
            else:
                state.add_(added[:, n])
            if self.kept is not None and factored and not backwards:
                state.mul_(self.kept[:, n])
        return states.flatten(0, 1)


def decays(log_decay: Tensor | None, runs: Tensor | None, before: Tensor | None, C: int, dtype: torch.dtype):
    """What remains of the past, all None where nothing is forgotten.

    Returns:
        into [B, H, N, C]: of the state before the chunk at each token. onto [B, H, N, C]: of each token at the chunk's end.
        within [B, H, N, C, C]: of each token at each later one, 0 above the diagonal. kept [B, H, N]: of the state over the
        chunk. H or B is 1 where heads or sequences are alike.
    """
    if log_decay is None and runs is None:
        return None, None, None, None
    like = log_decay if log_decay is not None else runs
    assert like is not None
    lower = torch.ones(C, C, dtype=torch.bool, device=like.device).tril()
    if log_decay is None:
        g = torch.zeros(1, 1, like.shape[-1] // C, C, dtype=dtype, device=like.device)
    else:
        g = log_decay.to(dtype).clamp(min=FAINTEST).unflatten(-1, (-1, C)).cumsum(-1)
    last = g[..., -1:]
    within = (g[..., :, None] - g[..., None, :]).masked_fill_(~lower, float("-inf")).exp_()
    into, onto, kept = g.exp(), (last - g).exp(), last[..., 0].exp()
    if runs is not None and before is not None:
        r = runs[:, None].unflatten(-1, (-1, C))  # (B, 1, N, C)
        prior = torch.cat((before[:, None, :, None], r[:, :, :-1, -1:]), 2)  # (B, 1, N, 1) the run before each chunk
        within = within * (r[..., :, None] == r[..., None, :])
        into, onto = into * (r == prior), onto * (r == r[..., -1:])
        kept = kept * (prior == r[..., -1:])[..., 0]
    return into, onto, within, kept


def own_state(state: Tensor | None, q: Tensor, v: Tensor) -> Tensor:
    """[B * H, D, Dv] that the passes may overwrite: a copy of `state`, or zeros."""
    exact = torch.promote_types(q.dtype, torch.float32)
    if state is None:
        return q.new_zeros(q.shape[0] * q.shape[1], q.shape[-1], v.shape[-1], dtype=exact)
    return state.to(exact, copy=True).flatten(0, 1).contiguous()
