"""Attention over disjoint parts of the pairs, merged exactly through their log-sum-exp.

Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan_kernels.selected import gated_sum

NOTHING = -1e30  # stands for the log-sum-exp of no key: finite, so that gradients stay so


def merged(parts: Sequence[tuple[Tensor, Tensor]], least: float = NOTHING / 2, backend: str = "auto") -> Tensor:
    """Outputs [B, H, T, D] with log-sum-exps [B, H, T] (a bias of the whole part included) -> [B, H, T, D].

    A query whose log-sum-exp is not above `least` has seen no key that counts, and gets 0. Differentiable.
    """
    known = torch.stack([lse for _, lse in parts], -1)  # (B, H, T, parts)
    known = torch.where(torch.isinf(known), NOTHING, known)
    total = torch.logsumexp(known, -1, keepdim=True)
    share = torch.where(total > least, torch.exp(known - total), 0.0)
    return gated_sum(share, [part for part, _ in parts], backend)
