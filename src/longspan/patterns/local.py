"""A window around the query, contiguous or dilated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longspan.patterns.base import Pattern, pairs_at_distances
from longspan.patterns.errors import MOST, whole_number
from longspan_kernels.block_sparse.rules import And, Band, Congruent, Rule


@dataclass(frozen=True, eq=False, repr=False)
class Local(Pattern):
    """A sliding window (Longformer, arXiv:2004.05150), with gaps where `dilation` is more than 1.

    Causal: 0 <= i - j < window * dilation, `window` keys. Both ways: |i - j| <= (window // 2) * dilation,
    2 * (window // 2) + 1 keys. In both (i - j) % dilation == 0.

    Attributes:
        window: keys a query sees.
        dilation: tokens from one of them to the next.
    """

    window: int
    dilation: int = 1

    def validate(self) -> None:
        self.normalise(
            window=whole_number("Local", "window", self.window, 1, "a number of keys"),
            dilation=whole_number("Local", "dilation", self.dilation, 1, "the step between keys in tokens"),
        )

    def rule(self, q_len: int, k_len: int, heads: tuple[int, ...], causal: bool, device: torch.device) -> Rule:
        reach = min(MOST, self.window * self.dilation - 1 if causal else (self.window // 2) * self.dilation)
        band = Band(0 if causal else -reach, reach)
        return band if self.dilation == 1 else And(band, Congruent(self.dilation))

    def last_query(self, keys: torch.Tensor, stop: int, head: int = 0) -> torch.Tensor:
        steps = ((stop - 1 - keys) // self.dilation).clamp(max=self.window - 1)
        return keys + steps * self.dilation

    def count(self, length: int, heads: tuple[int, ...], causal: bool) -> int:
        most = self.window - 1 if causal else self.window // 2
        return len(heads) * pairs_at_distances(length, self.dilation, most, causal)
