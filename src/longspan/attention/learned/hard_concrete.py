"""Hard-concrete gates (Louizos, Welling and Kingma, arXiv:1712.01312): in [0, 1], with mass at 0 and at 1, differentiable.

Each gate has one parameter, `log_alpha`; any shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # the paper's beta, gamma and zeta
START = 3.0  # without noise a gate of this log_alpha is exactly 1
SHUT = -1e4  # stands for the log of 0: a score so low that its weight underflows to 0 beside any open one
LEAST = 1e-4  # below it a gate counts as 0; a weight is proportional to its gate, so 1 / gate never shows in a gradient


def sampled(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates with noise `uniform` in (0, 1)."""
    noise = torch.log(uniform) - torch.log1p(-uniform)
    return _stretched((log_alpha + noise) / TEMPERATURE)


def settled(log_alpha: Tensor) -> Tensor:
    """Gates without noise, for evaluation."""
    return _stretched(log_alpha)


def _stretched(x: Tensor) -> Tensor:
    return (torch.sigmoid(x) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


def chance_open(log_alpha: Tensor) -> Tensor:
    """The chance that a sampled gate is not 0: the expected L0 norm, which has a gradient where the gate has none."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def log_gate(gate: Tensor) -> Tensor:
    """log(gate), and SHUT without a gradient for what counts as 0."""
    return torch.where(gate > LEAST, gate.clamp(min=LEAST).log(), SHUT)
