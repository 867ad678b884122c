"""A window around the query in an image whose tokens follow each other row by row.

Legend: r row and c column of a position, W width; position i is at (i // W, i % W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.patterns.base import Pattern, causal_part
from longspan.patterns.errors import MOST, PatternError, whole_number
from longspan_kernels.block_sparse.plane import Neighbourhood
from longspan_kernels.block_sparse.rules import Rule

EDGES = ("cut", "shift")


@dataclass(frozen=True, eq=False, repr=False)
class Local2D(Pattern):
    """Keys around the query in both directions of a grid: |r_i - r_j| and |c_i - c_j| are at most (window // 2) * dilation
    and multiples of dilation. That is (2 * (window // 2) + 1) ** 2 keys.

    At the edges the window is cut, or with `edges="shift"` moved inside, so that every query has equally many keys, as in
    neighbourhood attention (NATTEN, arXiv:2204.07143; dilated, arXiv:2209.15001). Causal: of those keys the ones at or
    before the query, row by row (raster order). A sequence shorter than the grid is its beginning; a longer one raises.

    Attributes:
        height, width: rows and columns of the grid, in tokens.
        window: keys of a row, and of a column, that a query sees; of an even one, one more.
        dilation: tokens from one of them to the next.
        edges: "cut" or "shift".
    """

    height: int
    width: int
    window: int
    dilation: int = 1
    edges: str = "cut"

    def validate(self) -> None:
        self.normalise(
            height=whole_number("Local2D", "height", self.height, 1, "a number of rows"),
            width=whole_number("Local2D", "width", self.width, 1, "a number of columns"),
            window=whole_number("Local2D", "window", self.window, 1, "a number of keys a side"),
            dilation=whole_number("Local2D", "dilation", self.dilation, 1, "the step between keys in tokens"),
        )
        if self.edges not in EDGES:
            raise PatternError("Local2D", "edges", f"= {self.edges!r}; give one of {', '.join(EDGES)}")
        side = 2 * (self.window // 2) + 1
        if self.edges == "shift" and side * self.dilation > min(self.height, self.width):
            raise PatternError(
                "Local2D",
                "window",
                f"= {self.window} with dilation {self.dilation} spans {side * self.dilation} tokens, more "
                f"than the grid of {self.height} x {self.width} has; give a smaller one, or edges='cut'",
            )

    @property
    def neighbourhood(self) -> Neighbourhood:
        """The pairs without causality."""
        # No window is wider than the grid; positions stay within 64 bits.
        reach = min(self.window // 2, (max(self.height, self.width) - 1) // self.dilation)
        return Neighbourhood(self.height, self.width, reach, min(self.dilation, MOST), self.edges == "shift")

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        if k_len > self.height * self.width:
            raise PatternError(
                "Local2D",
                "height, width",
                f"= {self.height}, {self.width} have {self.height * self.width} places for "
                f"{k_len} tokens; give the rows and columns of the image in tokens",
            )
        return causal_part(self.neighbourhood, causal)

    def last_query(self, keys: Tensor, stop: int, head: int = 0) -> Tensor:
        rule, d, W = self.neighbourhood, self.dilation, self.width
        last = min(stop, self.height * W) - 1
        bottom, right = last // W, last % W
        (top, down), (left, across) = self._seen_by(rule, keys // W, self.height), self._seen_by(rule, keys % W, W)
        row = keys // W % d + (down.clamp(max=bottom) - keys // W % d) // d * d
        # The last row may end before the first column that sees the key: then it is the row of the class before it.
        column = keys % W % d + (across.clamp(max=right) - keys % W % d) // d * d
        cut = (row == bottom) & (column < left)
        row = torch.where(cut, row - d, row)
        column = torch.where((row == bottom) & ~cut, column, across)
        return torch.where((row < top) | (keys > last), -1, row * W + column)

    @staticmethod
    def _seen_by(rule: Neighbourhood, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The first and the last coordinate of queries that see a key at x, of `size` coordinates."""
        d, own = rule.dilation, x % rule.dilation
        place, places = x // d, (size - own + d - 1) // d
        first, last = (place - rule.reach).clamp(min=0), (place + rule.reach).minimum(places - 1)
        if rule.shifted:
            first = torch.where(place <= 2 * rule.reach, 0, first)
            last = torch.where(place >= places - 1 - 2 * rule.reach, places - 1, last)
        return own + first * d, own + last * d

    def count(self, length: int, heads: tuple[int, ...], causal: bool) -> int:
        self.rule(length, length, heads, causal, self.home)  # raises where the grid is too small
        rule, W = self.neighbourhood, self.width
        full, rest = divmod(length, W)  # whole rows, and tokens of the last one
        rows = _keys_below(rule, min(full + 1, self.height), self.height)
        columns = _keys_below(rule, min(W, length), W)
        # A pair of rows that see each other has as many live pairs as columns do.
        all_columns, above = columns(W), int(rows(full)[full]) if rest else 0
        pairs = above * int(all_columns[:rest].sum())  # from the last, cut row to whole ones
        if causal:
            earlier = rows(torch.arange(min(full + 1, self.height)))[:full]
            own = columns(torch.arange(min(W, length)) + 1)  # of its own row a query sees the keys up to itself
            pairs += int(earlier.sum()) * int(all_columns.sum()) + full * int(own.sum()) + int(own[:rest].sum())
        else:
            pairs += int(rows(full)[:full].sum()) * int(all_columns.sum()) + int(columns(rest)[:rest].sum())
            pairs += int((rows(full + 1) - rows(full))[:full].sum()) * int(columns(rest).sum())
        return len(heads) * pairs


def _keys_below(rule: Neighbourhood, queries: int, size: int) -> Callable[[Tensor | int], Tensor]:
    """For the first `queries` coordinates of `size`: how many keys each sees, in this direction, below a bound."""
    x = torch.arange(queries)
    d, own = rule.dilation, x % rule.dilation
    low, high = rule.interval(x, size)
    first, last = ((low - own) // d).clamp(min=0), ((high - own) // d).minimum((size - 1 - own) // d)

    def below(bound: Tensor | int) -> Tensor:
        return (last.minimum((bound - 1 - own) // d) - first + 1).clamp(min=0)

    return below
