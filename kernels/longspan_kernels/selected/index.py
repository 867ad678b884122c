"""Chooses the tokens that each query attends to in DeepSeek sparse attention (arXiv:2512.02556): those of highest index score.

Legend: B batch, T tokens, J indexer heads, E their width, n picks a query, C queries of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from longspan_kernels.block_sparse.backends import choose_backend
from longspan_kernels.errors import KernelError, check_lengths
from longspan_kernels.launch.ops import op, without_autocast

SCORES_AT_ONCE = 1 << 24  # scores of heads that plain torch holds at a time


def choose_tokens(
    queries: Tensor, keys: Tensor, weights: Tensor, picks: int, *, lengths: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """The tokens up to a query whose index score sum over j of weights[j] * ReLU(queries[j] . keys) is highest.

    Scores of a chunk of queries are in memory at a time, never T * T.

    Args:
        queries: [B, J, T, E]; keys: [B, T, E]; weights: [B, J, T].
        picks: n.
        lengths: [B] int, tokens of each sequence; a query past it picks nothing.
        backend: as in `attend_to_tokens`.

    Returns:
        [B, T, n] int32 in rising order, then -1 where there are fewer; no gradient. Among equal scores (ReLU gives many of 0)
        the earliest tokens are taken, so that a choice does not depend on how long its batch is.

    Raises:
        KernelError: shapes that do not fit: kernels would read past them.
        BackendError: the backend cannot serve the call.
    """
    B, J, T, E = queries.shape
    if keys.shape != (B, T, E):
        raise KernelError(f"keys {tuple(keys.shape)} do not fit queries {tuple(queries.shape)}; give {(B, T, E)}")
    if weights.shape != (B, J, T):
        raise KernelError(f"weights {tuple(weights.shape)} do not fit queries {tuple(queries.shape)}; give {(B, J, T)}")
    check_lengths(lengths, B)
    backend = choose_backend(backend, queries, keys)
    return _choose_tokens(
        queries.detach(), keys.detach(), weights.detach(), lengths, picks, "triton" if backend == "triton" else "torch"
    )


@op("choose_tokens")
def _choose_tokens(queries: Tensor, keys: Tensor, weights: Tensor, lengths: Tensor | None, picks: int, backend: str) -> Tensor:
    (B, J, T, _), device = queries.shape, queries.device
    if backend == "triton" and queries.numel() and picks:
        from longspan_kernels.selected.triton.choose_tokens import triton_choose_tokens

        return triton_choose_tokens(queries, keys, weights, lengths, picks)
    out = torch.full((B, T, picks), -1, dtype=torch.int32, device=device)
    step = max(1, SCORES_AT_ONCE // max(1, T * J))
    tokens = torch.full((B,), T, device=device) if lengths is None else lengths
    for b in range(B):
        for first in range(0, T, step):
            rows = torch.arange(first, min(T, first + step), device=device)
            here, stop = slice(first, first + len(rows)), first + len(rows)
            scores = _scores(queries[b, :, here], keys[b, :stop], weights[b, :, here])  # (C, stop)
            live = (torch.arange(stop, device=device) <= rows[:, None]) & (rows < tokens[b])[:, None]
            scores.masked_fill_(~live, float("-inf"))
            best, found = scores.topk(min(picks, stop), sorted=False)
            least = best.amin(-1)
            equals = best.shape[1] - (best > least[:, None]).sum(-1, dtype=torch.int32)  # how many of them are among the best
            found = torch.where(best > float("-inf"), found.int(), T).sort(-1).values
            out[b, here, : found.shape[1]] = found.masked_fill(found == T, -1)
            # Which of equal scores topk takes is anyone's guess: rows with more of them than are taken go by their order.
            tied = ((scores == least[:, None]).sum(-1) > equals) & (least > float("-inf"))
            rows_tied = tied.nonzero()[:, 0]
            if len(rows_tied):
                again = torch.empty((len(rows_tied), picks), dtype=torch.int32, device=device)
                _compact(scores[rows_tied], least[rows_tied], equals[rows_tied], again)
                out[b, rows_tied + first] = again
    return out


def _compact(scores: Tensor, least: Tensor, equals: Tensor, out: Tensor) -> None:
    """Writes the columns of `scores` above `least`, and the first `equals` of those equal to it, to the front of out [C, n]."""
    equal = (scores == least[:, None]) & (scores > float("-inf"))
    taken = (scores > least[:, None]) | (equal & (equal.cumsum(-1, dtype=torch.int32) <= equals[:, None]))
    place = torch.where(taken, taken.cumsum(-1) - 1, out.shape[1])
    room = torch.full((out.shape[0], out.shape[1] + 1), -1, dtype=torch.int32, device=out.device)
    column = torch.arange(scores.shape[1], dtype=torch.int32, device=out.device)
    room.scatter_(1, place, column.expand_as(place))
    out.copy_(room[:, :-1])


def _scores(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """[C, S] of queries [J, C, E], keys [S, E] and weights [J, C], in float32 or more."""
    exact = torch.promote_types(queries.dtype, torch.float32)
    with without_autocast(queries):
        dots = queries.to(exact) @ keys.to(exact).T  # (J, C, S)
        return dots.relu_().mul_(weights.to(exact)[..., None]).sum(0)


@_choose_tokens.register_fake
def _(queries, keys, weights, lengths, picks, backend):
    return torch.empty((queries.shape[0], queries.shape[2], picks), dtype=torch.int32, device=queries.device)


@register_flop_formula(torch.ops.longspan.choose_tokens)
def choice_flops(queries_shape, keys_shape, weights_shape, lengths_shape, picks, *rest, out_shape=None, **kwargs) -> int:
    B, J, T, E = queries_shape
    return B * J * (2 * E + 2) * (T * (T + 1) // 2)
