"""Draws the tokens that masked modelling hides, and what stands in their place (1810.04805).

Legend: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.tasks.losses import IGNORED


def mask_tokens(
    tokens: Tensor,
    *,
    generator: torch.Generator,
    mask_id: int,
    ordinary_ids: Sequence[int] | Tensor,
    lengths: Tensor | None = None,
    masked_share: float = 0.15,
    replaced_by_mask: float = 0.8,
    replaced_at_random: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both [B, T], of tokens [B, T].

    Each ordinary token is chosen with probability `masked_share`; of the chosen, `replaced_by_mask` become the mask,
    `replaced_at_random` another ordinary token, the rest stay. Targets are ignored where nothing was chosen. A sequence
    with any ordinary token has at least one chosen. Random numbers are drawn on the generator's device. Nothing waits for the
    tokens' device where the generator and `ordinary_ids` are there too.

    Args:
        ordinary_ids: tokens that may be hidden; a tensor of them is ascending.
    """
    ordinary = ordinary_ids if isinstance(ordinary_ids, Tensor) else torch.tensor(sorted(ordinary_ids))
    ordinary = ordinary.to(tokens.device)
    # torch.isin reads the number of different tokens back to the host.
    nearest = torch.searchsorted(ordinary, tokens.to(ordinary.dtype).contiguous()).clamp(max=len(ordinary) - 1)
    eligible = ordinary[nearest] == tokens  # (B, T)
    if lengths is not None:
        eligible &= torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    device = generator.device
    draw = torch.rand(tokens.shape, generator=generator, device=device).to(tokens.device)  # (B, T)
    draw = draw.masked_fill(~eligible, 2.0)
    chosen = (draw < masked_share) | (draw == draw.amin(dim=1, keepdim=True)) & eligible
    fate = torch.rand(tokens.shape, generator=generator, device=device).to(tokens.device)  # (B, T)
    others = torch.randint(len(ordinary), tokens.shape, generator=generator, device=device).to(tokens.device)
    inputs = tokens.masked_fill(chosen & (fate < replaced_by_mask), mask_id)
    at_random = chosen & (fate >= replaced_by_mask) & (fate < replaced_by_mask + replaced_at_random)
    return torch.where(at_random, ordinary[others].to(tokens.dtype), inputs), tokens.long().masked_fill(~chosen, IGNORED)
