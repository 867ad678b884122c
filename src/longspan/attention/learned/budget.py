"""From open gates at the start to a density at the end: what is aimed at when, the multiplier, and the final choice.

Legend: H heads, G gates a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.attention.errors import wrong_setting
from longspan.values import is_number


@dataclass(frozen=True)
class Schedule:
    """Shares of the run at which something begins.

    Attributes:
        open_until: until then every gate is open and attention is full.
        reached_at: the target falls until then, fast at first (cubic, arXiv:1710.01878).
        harden_at: the gates become a plain pattern, with which training goes on.
    """

    open_until: float
    reached_at: float
    harden_at: float

    def __post_init__(self) -> None:
        earlier = 0.0
        for key in ("open_until", "reached_at", "harden_at"):
            value = getattr(self, key)
            if not is_number(value, earlier, 1.0):
                raise wrong_setting(
                    key,
                    f"= {value!r}; give a share of the run from {earlier} to 1.0 (open_until <= reached_at <= harden_at)",
                )
            earlier = float(value)

    def target(self, progress: float, final: float) -> float:
        """The share of pairs aimed at, `progress` of the way through the run."""
        if progress <= self.open_until:
            return 1.0
        if progress >= self.reached_at:
            return final
        left = 1.0 - (progress - self.open_until) / (self.reached_at - self.open_until)
        return final + (1.0 - final) * left**3

    def reaches(self, step: int, total: int) -> bool:
        """Whether `step` of `total` is the first whose target is the final one."""
        before, now = (self.target(n / max(1, total), 0.0) for n in (step - 1, step))
        return now == 0.0 < before


def chosen_gates(score: Tensor, pairs: Tensor, budget: float | Tensor, allowed: Tensor) -> Tensor:
    """[H, G] bool: the best gates by `score` [H, G] whose `pairs` [G] together stay within the budget.

    A gate that no longer fits is left out, and smaller ones after it may still fit. Ties go to nearer offsets. A budget
    [H, G] says for each gate how much it and the better ones may take together.
    """
    heads, gates = score.shape
    # Gate by gate over the heads, so that a tie favours no head.
    order = torch.argsort(score.T.flatten(), descending=True, stable=True)
    usable = (allowed & (pairs > 0)).T.flatten()
    weight = pairs[:, None].expand(gates, heads).flatten()
    limit = torch.as_tensor(budget, dtype=torch.float64).expand(heads, gates).T.flatten()
    out = torch.zeros(gates * heads, dtype=torch.bool)
    spent = 0.0
    columns = (order, weight[order], limit[order], usable[order])
    for place, weighs, most, fits in zip(*(column.tolist() for column in columns), strict=True):
        if fits and spent + weighs <= most:
            out[place] = True
            spent += weighs
    return out.view(gates, heads).T.contiguous()
