"""Attention over disjoint parts of the pairs, merged exactly through their log-sum-exp.

Legend: B batch, H heads, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NOTHING = -1e30  # stands for the log-sum-exp of no key: finite, so that gradients stay so


def merged(parts: Sequence[tuple[Tensor, Tensor]], least: float = NOTHING / 2) -> Tensor:
    """Outputs [B, H, T, D] with log-sum-exps [B, H, T] (a bias of the whole part included) -> [B, H, T, D].

    A query whose log-sum-exp is not above `least` has seen no key that counts, and gets 0. Differentiable.
    """
    known = torch.stack([torch.where(torch.isinf(lse), NOTHING, lse) for _, lse in parts])  # (parts, B, H, T)
    total = torch.logsumexp(known, 0)
    share = torch.where(total > least, torch.exp(known - total), 0.0)
    out = sum((part.to(share.dtype) * share[n][..., None] for n, (part, _) in enumerate(parts)), torch.zeros(()))
    return out.to(parts[0][0].dtype)
