"""A user's own mask function, as FlexAttention takes it."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.patterns.base import Pattern, causal_part
from longspan.patterns.errors import PatternError
from longspan.patterns.watched import Watched
from longspan_kernels.block_sparse.rules import Arbitrary, Rule

MOST_PAIRS = 1 << 31
"""Evaluations that a predicate may take, Tq * Tk times the heads it may differ by: at most some 5 GiB of masks."""

_numbers: dict[Any, int] = {}
_next_number = itertools.count()
_all_watched: dict[Any, Watched] = {}


@dataclass(frozen=True, eq=False, repr=False)
class Predicate(Pattern):
    """The pairs for which ``mask_mod(b, h, q_idx, kv_idx)`` is true (FlexAttention's mask_mod, with b = 0).

    The function is called on int64 tensors that broadcast against each other, so it must work elementwise, as
    FlexAttention's do. Positions are in key coordinates; with more queries than keys the first ones are negative. It is
    evaluated at every pair, in chunks: the one pattern that takes Tq * Tk time.

    It is evaluated once a length, and again at the first call after something that it reads has changed, on every backend
    alike: tensors changed in place or replaced, and numbers, that its closure, its defaults, a `functools.partial`, globals
    or attributes hold and its code names. Anything else (a file, a NumPy array, what a tensor's `.data` or a library changes
    unseen) needs `refresh()`. Between a call and its backward pass nothing may change: "blocked" and "triton" raise then. A
    recorded CUDA graph goes on with what it was recorded with.

    Equal by the function's identity; the key is not stable across processes.

    Attributes:
        mask_mod: returns a bool tensor.
        per_head: False where the function ignores `h`, which saves evaluating it for every head.
    """

    mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    per_head: bool = True
    evaluates_pairs = True

    def validate(self) -> None:
        if not callable(self.mask_mod):
            raise PatternError(
                "Predicate", "mask_mod", f"= {self.mask_mod!r} is not callable; give mask_mod(b, h, q_idx, kv_idx)"
            )
        if not _takes_four(self.mask_mod):
            raise PatternError(
                "Predicate",
                "mask_mod",
                f"= {self.mask_mod!r} does not take four arguments; write mask_mod(b, h, q_idx, kv_idx)",
            )
        self.normalise(per_head=bool(self.per_head))

    def refresh(self) -> None:
        """Has the next call evaluate the function again, and that of every equal pattern and composition with it."""
        self._watched.refresh()

    def state(self) -> tuple[int, ...]:
        return (self._watched.state(),)

    @functools.cached_property
    def _watched(self) -> Watched:
        try:
            return _all_watched.setdefault(self.mask_mod, Watched(self.mask_mod))
        except TypeError:  # not hashable: a pattern of its own
            return Watched(self.mask_mod)

    def settings(self) -> list[tuple[str, str]]:
        name = getattr(self.mask_mod, "__qualname__", type(self.mask_mod).__qualname__)
        return [("mask_mod", f"{name}#{_number(self.mask_mod)}"), ("per_head", repr(self.per_head))]

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        return self.rule_within(q_len, k_len, heads, causal, device, k_len)

    def rule_within(
        self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device, reach: int
    ) -> Rule:
        copies = len(heads) if self.per_head else 1
        if q_len * min(reach, k_len) * copies > MOST_PAIRS:
            raise PatternError(
                "Predicate",
                "mask_mod",
                f"would be evaluated at {q_len} x {min(reach, k_len)} pairs "
                f"for {copies} head(s), more than {MOST_PAIRS}; intersect it with a window, Local(...) & Predicate(...), "
                "use a pattern that knows its structure" + (", or per_head=False if it ignores h" if self.per_head else ""),
            )
        lowest, highest = k_len - q_len, k_len - 1

        def live(h: Tensor | int, i: Tensor, j: Tensor) -> Tensor:
            shape = torch.broadcast_shapes(i.shape, j.shape)
            # Tiles hold places without a token; a mask_mod that looks positions up must not see those.
            i, j = i.clamp(lowest, highest), j.clamp(0, highest)
            head = torch.as_tensor(h, device=i.device)
            kept = self.mask_mod(torch.zeros((), dtype=torch.int64, device=i.device), head, i, j)
            if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
                found = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
                raise PatternError("Predicate", "mask_mod", f"returned {found}; it must return a bool tensor")
            return kept.to(i.device).expand(torch.broadcast_shapes(shape, kept.shape))

        return causal_part(Arbitrary(live, self.per_head), causal)

    @property
    def home(self) -> torch.device:
        """The device of the tensors that the function closes over, so that it can be evaluated beside them."""
        held = [cell.cell_contents for cell in getattr(self.mask_mod, "__closure__", None) or ()]
        if isinstance(self.mask_mod, functools.partial):
            held += [*self.mask_mod.args, *self.mask_mod.keywords.values()]
        return next((value.device for value in held if isinstance(value, Tensor)), torch.device("cpu"))

    def count(self, length: int, heads: tuple[int, ...], causal: bool) -> int:
        step = max(1, (1 << 24) // length)
        rule = self.rule(length, length, heads, causal, self.home)
        j = torch.arange(length, device=self.home)[None, :]
        total = 0
        for head in heads if self.per_head else heads[:1]:
            for i in torch.arange(length, device=self.home)[:, None].split(step):
                total += int(rule.live(head, i, j).sum())
        return total if self.per_head else total * len(heads)


def _takes_four(function: Callable[..., Any]) -> bool:
    """Whether it can be called with b, h, q_idx, kv_idx, as far as it tells."""
    try:
        inspect.signature(function).bind(*[None] * 4)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _number(function: Any) -> int:
    """A number for each function, the same whenever the same function comes again."""
    try:
        return _numbers.setdefault(function, next(_next_number))
    except TypeError:  # not hashable: each use is a pattern of its own
        return next(_next_number)
