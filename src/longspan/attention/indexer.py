"""The lightning indexer of DeepSeek sparse attention: cheap scores of all earlier tokens, and what they are trained by.

Legend: B batch, H heads, Hkv key/value heads, G = H / Hkv, T tokens, D head width, J indexer heads, E their width, n picks a
query, b sequences and C queries of a chunk, S keys that a chunk may see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SCORES_AT_ONCE = 1 << 23  # of indexer heads or attention heads, that one chunk holds


class LightningIndexer(nn.Module):
    """Index scores I[t, s] = sum over j of w[t, j] * ReLU(q[t, j] . k[s]), from the query and key of a token.

    It reads them without a gradient: nothing but its own loss trains it.

    Args:
        heads, width: J and E.
        query_width, key_width: H * D and Hkv * D.
    """

    def __init__(self, heads: int, width: int, query_width: int, key_width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.query = nn.Linear(query_width, heads * width, bias=False)
        self.key = nn.Linear(key_width, width, bias=False)
        self.weight = nn.Linear(query_width, heads, bias=False)
        for linear in (self.query, self.key, self.weight):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, T, D], k [B, Hkv, T, D] -> queries [B, J, T, E], keys [B, T, E], weights [B, J, T], scaled for the sum."""
        of_query, of_key = (x.detach().transpose(1, 2).flatten(2) for x in (q, k))  # (B, T, H D), (B, T, Hkv D)
        queries, keys, weights = (
            nn.functional.linear(x, layer.weight.to(x.dtype))
            for x, layer in ((of_query, self.query), (of_key, self.key), (of_query, self.weight))
        )
        keys = nn.functional.layer_norm(keys, keys.shape[-1:])
        scale = (self.heads * self.width) ** -0.5
        return queries.unflatten(2, (self.heads, self.width)).transpose(1, 2), keys, weights.transpose(1, 2) * scale

    def flops(self, length: int) -> int:
        """Of the projections and of the scores of all earlier tokens, for one sequence."""
        projections = sum(2 * layer.in_features * layer.out_features for layer in (self.query, self.key, self.weight))
        return length * projections + self.heads * (2 * self.width + 2) * (length * (length + 1) // 2)


def imitation_loss(
    indexed: tuple[Tensor, Tensor, Tensor], q: Tensor, k: Tensor, picks: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """KL(p || softmax of index scores), the mean over tokens; p is the mean of the attention weights of all heads.

    Weights and gradients are made some queries at a time, and only the gradients are kept: nothing is T * T.

    Args:
        indexed: queries, keys and weights of the indexer, which alone get gradients.
        q, k: of the attention that is imitated.
        picks: [B, T, n], over which both distributions are; None for all tokens up to the query.
        lengths: [B], tokens of each sequence.
    """
    return _Imitation.apply(*indexed, q.detach(), k.detach(), picks, lengths)  # type: ignore[no-any-return]


class _Imitation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        weights: Tensor,
        q: Tensor,
        k: Tensor,
        picks: Tensor | None,
        lengths: Tensor | None,
    ) -> Tensor:
        exact = torch.promote_types(q.dtype, torch.float32)
        (B, H, T, _), width = q.shape, q.shape[2] if picks is None else picks.shape[2]
        grads = [torch.zeros_like(x, dtype=exact) for x in (queries, keys, weights)]
        loss = torch.zeros((), dtype=exact, device=q.device)
        tokens = torch.full((B,), T, device=q.device) if lengths is None else lengths
        count = tokens.clamp(0, T).sum().clamp(min=1)
        # A gathered key is as many numbers as it is wide; scores are one a head.
        each = width * max(H, queries.shape[1], 1 if picks is None else max(k.shape[1] * k.shape[3], keys.shape[2]))
        step, together = max(1, SCORES_AT_ONCE // each), max(1, SCORES_AT_ONCE // (each * T))
        for sequence in range(0, B, together):
            batch = slice(sequence, sequence + together)
            for first in range(0, T, step):
                stop = min(T, first + step)
                here, rows = slice(first, stop), torch.arange(first, stop, device=q.device)
                chosen = None if picks is None else picks[batch, here]  # (b, C, n)
                live = (torch.arange(stop, device=q.device) <= rows[:, None]) if chosen is None else chosen >= 0
                live = live & (rows < tokens[batch, None])[..., None]  # (b, C, S or n)
                target = _weights(q[batch, :, here].to(exact), k[batch, :, :stop], chosen, live)
                parts = ((batch, slice(None), here), (batch, slice(0, stop)), (batch, slice(None), here))
                own = tuple(
                    x.detach()[part].to(exact).requires_grad_() for x, part in zip((queries, keys, weights), parts, strict=True)
                )
                with torch.enable_grad():
                    scores = _index_scores(own, chosen)
                    log_p = scores.masked_fill(~live, torch.finfo(exact).min).log_softmax(-1)
                    share = (torch.xlogy(target, target) - target * log_p).masked_fill(~live, 0.0).sum() / count
                for total, part, grad in zip(grads, parts, torch.autograd.grad(share, own), strict=True):
                    total[part] += grad
                loss += share.detach()
        ctx.save_for_backward(*(grad.to(x.dtype) for grad, x in zip(grads, (queries, keys, weights), strict=True)))
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *(dloss.to(grad.dtype) * grad for grad in ctx.saved_tensors), None, None, None, None


def _index_scores(own: tuple[Tensor, ...], picks: Tensor | None) -> Tensor:
    """Of queries [b, J, C, E], keys [b, S, E] and weights [b, J, C]: [b, C, S], or [b, C, n] of picked tokens."""
    queries, keys, weights = own
    weights = weights[..., None]
    if picks is None:
        return ((queries @ keys[:, None].mT).relu() * weights).sum(1)
    return (torch.einsum("bjce,bcne->bjcn", queries, _gathered(keys, picks)).relu() * weights).sum(1)


def _weights(q: Tensor, k: Tensor, picks: Tensor | None, live: Tensor) -> Tensor:
    """The mean over heads of the attention weights of queries [b, H, C, D] to keys [b, Hkv, S, D]; [b, C, S or n]."""
    Hkv, scale = k.shape[1], q.shape[3] ** -0.5
    grouped = q.unflatten(1, (Hkv, -1)) * scale  # (b, Hkv, G, C, D)
    total = torch.zeros(live.shape, dtype=q.dtype, device=q.device)
    for head in range(Hkv):
        keys = k[:, head]  # (b, S, D)
        if picks is None:
            scores = grouped[:, head] @ keys[:, None].to(q.dtype).mT  # (b, G, C, S)
        else:
            scores = torch.einsum("bgcd,bcnd->bgcn", grouped[:, head], _gathered(keys, picks).to(q.dtype))
        total += scores.masked_fill(~live[:, None], torch.finfo(q.dtype).min).softmax(-1).sum(1)
    return (total / q.shape[1]).masked_fill(~live, 0.0)


def _gathered(x: Tensor, picks: Tensor) -> Tensor:
    """[b, S, E], picks [b, C, n] -> [b, C, n, E]; a pick of -1 takes the first, which is masked later."""
    return x[torch.arange(len(x), device=x.device)[:, None, None], picks.clamp(min=0).long()]
