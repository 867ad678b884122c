"""Cross-entropy a token, without ever holding the logits of a whole long sequence.

Legend: N tokens, C model width, V vocabulary or classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # a target that counts for nothing, as in torch.nn.functional.cross_entropy
LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


def token_losses(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    classes: int,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Loss of each token in nats, [N] float32, 0 where the target is ignored.

    Args:
        head: turns hidden states [n, C] into logits [n, V].
        hidden: [N, C].
        targets: [N] int64.
        classes: V.
        loss: losses [n] of logits [n, V] and targets [n]; cross-entropy unless given.
        logits_at_once: longer inputs go through the head in pieces of so many logits, which the backward recomputes.
    """
    piece = max(1, logits_at_once // classes)

    def losses(some_hidden: Tensor, some_targets: Tensor) -> Tensor:
        logits = head(some_hidden).float()  # (n, V)
        if loss is not None:
            return loss(logits, some_targets)
        return F.cross_entropy(logits, some_targets, reduction="none", ignore_index=IGNORED)

    if hidden.shape[0] <= piece:
        return losses(hidden, targets)
    pieces = zip(hidden.split(piece), targets.split(piece), strict=True)
    return torch.cat([checkpoint(losses, *one, use_reentrant=False) for one in pieces])  # type: ignore[misc]


@torch.no_grad()
def token_predictions(
    head: Callable[[Tensor], Tensor], hidden: Tensor, *, classes: int, logits_at_once: int = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """Most probable class of each token, [N] int64, and its probability, [N] float32, from hidden states [N, C]."""
    pieces = [head(some).float().softmax(dim=-1).max(dim=-1) for some in hidden.split(max(1, logits_at_once // classes))]
    return torch.cat([best.indices for best in pieces]), torch.cat([best.values for best in pieces])


def weighted_mean(losses: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean over targets that count, and how many count; 0 (with a gradient of 0) where none does.

    With class weights it is a weighted mean, and the losses are taken as already multiplied by their weights.
    """
    counts = targets != IGNORED
    total = counts.sum()
    if class_weights is None:
        return losses.sum() / total.clamp(min=1), total
    weight = (class_weights[targets.clamp(min=0)] * counts).sum()
    return losses.sum() / weight.clamp(min=torch.finfo(torch.float32).tiny), total
