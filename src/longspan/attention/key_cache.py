"""The cache of decoding by a pattern: it holds the keys and values that a later query still sees, and reuses the other slots.

Each key is stored with the last query that sees it (`Pattern.last_query`); from then on its slot is free. So a window keeps
a window, and full attention keeps everything. Heads whose patterns differ keep their own.

Legend: B batch, H query heads, g key/value heads of a group, G query heads a key/value head, n new tokens, S slots, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from longspan.attention.decoding import AttentionCache
from longspan.config.errors import CallError
from longspan.patterns import Pattern
from longspan.patterns.base import NEVER_ENDS

SPARE = 32  # slots beyond those in use when a store grows, or an eighth of them where that is more
SCORES_AT_ONCE = 1 << 22  # query-key scores held at a time
STEP = 1024  # positions whose last queries, or rows whose rules, are made at a time
Bias = Callable[[Tensor, Tensor, Tensor], Tensor]


def existing(positions: Tensor, n: int, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions [B, n] of new tokens, and which of them exist [B, n] bool."""
    place = torch.arange(n, device=positions.device)
    exists = torch.ones((len(positions), n), dtype=torch.bool, device=positions.device)
    if lengths is not None:
        exists = place < lengths.to(positions.device)[:, None]
    return positions[:, None] + place, exists


class Slots(AttentionCache):
    """Keys and values with their positions; slots whose key no later query sees are free.

    Attributes:
        keys, values: [B, g, S, D].
        position: [B, g, S] int64, -1 where a slot has never been used.
        last: [B, g, S] int64, the last query that sees the key.
    """

    def __init__(self, batch: int, heads: int, width: int, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__(batch, device)
        self.keys = torch.zeros((batch, heads, 1, width), device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.position = torch.full((batch, heads, 1), -1, dtype=torch.int64, device=device)
        self.last = torch.full_like(self.position, -1)
        self._room = 0  # at least so many slots are free, so that nobody waits for the device to know

    def add(self, k: Tensor, v: Tensor, position: Tensor, last: Tensor, upcoming: Tensor) -> None:
        """Stores those of k, v [B, g, n, D] that a query from `upcoming` [B] on sees; position and last are [B, g, n]."""
        n, after = k.shape[2], upcoming[:, None, None]
        wanted = last >= after
        if n > self._room:
            self._make_room(wanted, after)
        free = self.last < after
        free[..., -1] = False  # the last slot takes what is not wanted
        if n == 1:
            slot = free.int().argmax(-1, keepdim=True)
        else:
            order = torch.argsort(~free, dim=-1, stable=True)
            slot = order.gather(-1, (wanted.cumsum(-1) - 1).clamp(min=0, max=order.shape[-1] - 1))
        slot = torch.where(wanted, slot, self.keys.shape[2] - 1)
        for store, new in ((self.keys, k), (self.values, v)):
            kept = new.masked_fill(~wanted[..., None], 0.0)  # what does not exist may be anything, NaN included
            store.scatter_(2, slot[..., None].expand_as(new), kept.to(store.dtype))
        self._scattered(slot)
        self.position.scatter_(2, slot, position)
        self.last.scatter_(2, slot, last)
        self.position[..., -1] = -1
        self.last[..., -1] = -1
        self._room -= n

    def _scattered(self, slot: Tensor) -> None:
        """Stores what a subclass keeps beside keys and values, at slot [B, g, n]."""

    def _make_room(self, wanted: Tensor, after: Tensor) -> None:
        used = int((self.last >= after).sum(-1).max())
        needed = int(wanted.sum(-1).max())
        slots = self.keys.shape[2] - 1
        if used + needed > slots or slots - used < min(SPARE, needed):
            more = used + needed + max(SPARE, (used + needed) // 8) - slots
            pad = torch.nn.functional.pad
            self.keys, self.values = pad(self.keys, (0, 0, 0, more)), pad(self.values, (0, 0, 0, more))
            self.position, self.last = pad(self.position, (0, more), value=-1), pad(self.last, (0, more), value=-1)
        self._room = self.keys.shape[2] - 1 - used


class KeyCache(AttentionCache):
    """The keys that queries to come still see, by the pattern of each head.

    Args:
        pattern: of the attention.
        heads, kv_heads, head_dim: H, Hkv and D.
        max_length: the longest sequence, None where it is not known; what is random keeps the more, the longer it may be.
    """

    def __init__(
        self,
        pattern: Pattern,
        batch: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        max_length: int | None,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(batch, device)
        self.stop = NEVER_ENDS if max_length is None else max_length
        self.per_kv = heads // kv_heads
        self.seen = 0  # tokens of the longest sequence at most
        self.least = 0  # tokens of the shortest sequence at least
        each = [pattern.at_head(head, heads) for head in range(heads)]
        groups: dict[tuple[Pattern, ...], list[int]] = {}
        for kv in range(kv_heads):
            groups.setdefault(tuple(each[kv * self.per_kv : (kv + 1) * self.per_kv]), []).append(kv)
        self.groups = [_Group(patterns, members, self.stop, self.per_kv) for patterns, members in groups.items()]
        self.stores = [Slots(batch, len(group.members), head_dim, device, dtype) for group in self.groups]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, *, scale: float | None = None, bias: Bias | None = None
    ) -> Tensor:
        """Outputs [B, H, n, D] of new tokens over the keys that are kept and their own.

        Args:
            bias: called with head, query and key positions that broadcast; what it returns is added to the scores.
        """
        (B, H, n, D), G = q.shape, self.per_kv
        i, exists = existing(self.positions, n, lengths)
        if lengths is not None:  # what does not exist may be anything, NaN included
            q, k, v = (x.masked_fill(~exists[:, None, :, None], 0.0) for x in (q, k, v))
        queries_of = q.reshape(B, H // G, G, n, D)
        out = torch.zeros_like(queries_of)
        scale = D**-0.5 if scale is None else scale
        for group, store in zip(self.groups, self.stores, strict=True):
            members, rows = group.place(q.device), self.seen + n
            old = store.position[:, :, None, None, :]
            new = (i if lengths is None else i.masked_fill(~exists, -1))[:, None, None, None, :]
            for first in range(0, n, step := max(1, SCORES_AT_ONCE // (B * H * (store.keys.shape[2] + n)))):
                cut = slice(first, first + step)
                parts = []
                for j, keys in ((old, store.keys), (new, k[:, members])):
                    queries = i[:, None, None, cut, None]
                    live = group.live(queries, j, rows, q.device) & (j >= 0)
                    scores = (queries_of[:, members][..., cut, :] @ keys[:, :, None].transpose(-1, -2)) * scale
                    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
                    if bias is not None:
                        scores = scores + bias(group.head_numbers(q.device), queries, j)
                    parts.append(scores.masked_fill(~live, float("-inf")))
                weights = torch.cat(parts, -1)
                nothing = (weights == float("-inf")).all(-1, keepdim=True)
                weights = weights.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0).to(q.dtype)
                past, own = weights.split((store.keys.shape[2], n), -1)
                found = past @ store.values[:, :, None] + own @ v[:, members][:, :, None]  # (B, g, G, rows, D)
                out[:, members, :, cut] = found
        out = out.view(B, H, n, D)
        return out if lengths is None else out.masked_fill(~exists[:, None, :, None], 0.0)

    def add(self, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
        """Takes new tokens in."""
        n = k.shape[2]
        position, exists = existing(self.positions, n, lengths)
        upcoming = self.positions + (n if lengths is None else lengths.to(self.positions.device))
        if self.seen + n > self.stop and int(upcoming.max()) > self.stop:
            raise CallError(
                f"{int(upcoming.max())} tokens are more than the {self.stop} of the longest sequence; build the attention "
                "with a larger max_length"
            )
        for group, store in zip(self.groups, self.stores, strict=True):
            last = group.last(position, self.least, min(self.seen + n, self.stop))  # (B, g, n)
            if lengths is not None:
                last = last.masked_fill(~exists[:, None], -1)
            members = group.place(k.device)
            store.add(k[:, members], v[:, members], position[:, None].expand_as(last), last, upcoming)
        self.positions = upcoming
        self.seen += n
        self.least += n if lengths is None else int(lengths.min())


class _Group:
    """Key/value heads whose query heads have equal patterns: their rules, and the last query of each key."""

    def __init__(self, patterns: Sequence[Pattern], members: list[int], stop: int, per_kv: int) -> None:
        self.patterns, self.members, self.stop, self.per_kv = patterns, members, stop, per_kv
        consecutive = members == list(range(members[0], members[-1] + 1))
        self._place: slice | Tensor = slice(members[0], members[-1] + 1) if consecutive else torch.tensor(members)
        numbers = [[kv * per_kv + c for c in range(per_kv)] for kv in members]
        self._numbers = torch.tensor(numbers)[None, :, :, None, None]  # (1, g, G, 1, 1)
        self._rules: list[Any] = []
        self._rows = 0
        self._stretches = range(0)  # of STEP positions each, those that new tokens lie in
        self._last = torch.empty(0)  # [g, positions] their last queries

    def heads(self, place: int) -> list[int]:
        """The query heads at one place among those of their key/value heads."""
        return [kv * self.per_kv + place for kv in self.members]

    def head_numbers(self, device: torch.device) -> Tensor:
        """[1, g, G, 1, 1]."""
        self._numbers = self._numbers.to(device)  # once: a copy to a GPU for each token would cost as much as its attention
        return self._numbers

    def place(self, device: torch.device) -> slice | Tensor:
        """Where the group's key/value heads stand: a slice where they are neighbours."""
        if isinstance(self._place, Tensor):
            self._place = self._place.to(device)
        return self._place

    def live(self, i: Tensor, j: Tensor, rows: int, device: torch.device) -> Tensor:
        """Pairs of query positions i [B, 1, 1, n, 1] and key positions j [B, g or 1, 1, 1, keys], for positions below rows."""
        if rows > self._rows:
            self._rows = min(self.stop, -(-rows // STEP) * STEP)
            # One rule for all heads with a pattern: a rule made for a single head does not say that others draw otherwise.
            made: dict[Pattern, Any] = {}
            for pattern in dict.fromkeys(self.patterns):
                heads = sorted(head for c, other in enumerate(self.patterns) if other == pattern for head in self.heads(c))
                made[pattern] = pattern.rule(self._rows, self._rows, tuple(heads), True, device)
            self._rules = [made[pattern] for pattern in self.patterns]
        out: list[Tensor] = []
        for c, (pattern, rule) in enumerate(zip(self.patterns, self._rules, strict=True)):
            same = self.patterns.index(pattern)
            if same < c and not rule.per_head:
                out.append(out[same])
                continue
            out.append(rule.live(self.head_numbers(device)[:, :, c : c + 1], i, j.clamp(min=0)))
        if all(found is out[0] for found in out):
            return out[0]
        shape = torch.broadcast_shapes(*(found.shape for found in out))
        return torch.cat([found.expand(shape) for found in out], 2)

    def last(self, position: Tensor, least: int, rows: int) -> Tensor:
        """[B, g, n]: the last query that sees each key at position [B, n], from `least` up to `rows`, by any query head of its
        key/value head."""
        wanted = range(least // STEP, -(-rows // STEP))
        if wanted != self._stretches:
            known = dict(zip(self._stretches, self._last.split(STEP, 1), strict=True)) if len(self._stretches) else {}
            parts = [known[n] if n in known else self._stretch(n).to(position.device) for n in wanted]
            self._stretches, self._last = wanted, torch.cat(parts, 1)
        place = (position - wanted.start * STEP).clamp(0, self._last.shape[1] - 1)  # tokens that do not exist may lie beyond
        return self._last[:, place].transpose(0, 1)

    def _stretch(self, number: int) -> Tensor:
        """[g, STEP] of the positions from number * STEP on."""
        keys = torch.arange(number * STEP, min((number + 1) * STEP, self.stop))
        found = [
            torch.stack(
                [pattern.last_query(keys, self.stop, kv * self.per_kv + c) for c, pattern in enumerate(self.patterns)]
            ).amax(0)
            for kv in self.members
        ]
        return torch.nn.functional.pad(torch.stack(found), (0, STEP - len(keys)), value=-1)
