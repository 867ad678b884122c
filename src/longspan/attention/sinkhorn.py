"""`attention=sinkhorn`: each block attends to itself and to the block that it is matched with.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, nb blocks, bs tokens a block.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.attention.base import visited_pairs
from longspan.attention.content import ContentAttention, for_all_heads, with_lse, without_padding
from longspan.attention.decoding import as_in_evaluation
from longspan.attention.errors import as_block_size, as_whole, wrong_setting
from longspan.attention.place import Place
from longspan.attention.token_cache import QueryCache
from longspan.cost import Cost
from longspan.patterns import BigBird
from longspan.values import is_number
from longspan_kernels.selected import NOTHING, balance_causally, match_blocks, merge_by_lse, queries_so_far

LEAST_MASS = 1e-6  # of a matched place, below which it counts as empty


class SinkhornAttention(ContentAttention):
    """Sparse Sinkhorn attention (arXiv:2002.11296): blocks are matched softly by a matrix that is nearly a permutation.

    The score of query block a and key block b is the dot of their mean query and mean key over sqrt(D), as in the peer
    implementation; gradients reach queries and keys through it. With Gumbel noise in training, and over a temperature, rows
    and columns are normalised in turn until the matrix is nearly doubly stochastic. A query attends to its own block, and to
    the mean of all blocks by its block's row, place by place.

    Causal, a block is matched with earlier ones alone (the first with none). Its features are the mean of the queries up to
    its first token, and a column is normalised over the rows so far, so that nothing depends on later tokens.

    Args:
        block_size: tokens a block, a multiple of 16.
        iterations: normalisations of rows and columns.
        temperature: below 1 the matrix is nearer to a permutation.
        noise: factor of the Gumbel noise in training; 0 for none.
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
    """

    def __init__(
        self,
        *,
        block_size: int = 64,
        iterations: int = 7,
        temperature: float = 0.75,
        noise: float = 1.0,
        **place: Unpack[Place],
    ) -> None:
        super().__init__(**place)
        self.block_size = as_block_size(block_size)
        self.iterations = as_whole("iterations", iterations, 1, "normalisations of rows and columns")
        for key, value, least in (("temperature", temperature, 1e-3), ("noise", noise, 0.0)):
            if not is_number(value, least) or value == float("inf"):
                raise wrong_setting(key, f"= {value!r}; give a number, {least} or more")
        self.temperature, self.noise = float(temperature), float(noise)
        self.own_block = BigBird(block_size, window_blocks=1, random_blocks=0, global_blocks=0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        (B, H, T, _), size = q.shape, self.block_size
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        call = {"dropout_p": self.dropped, "backend": self.backend}
        own = with_lse(q, k, v, self.own_block, causal=self.causal, lengths=lengths, **call)
        # Compiled, one graph serves one block and two, of which the second may be empty.
        few = torch.compiler.is_compiling() and 2 * size > T
        blocks = 2 if few else -(-T // size)
        if self.causal and blocks == 1:  # the first block has none before it
            return own[0]
        if self.causal and lengths is None and not few and T % size == 0:
            k_matched, v_matched = self._matched_whole(q, k, v)
            matched = with_lse(q, k_matched, v_matched, self.own_block, **call)
            return merge_by_lse([own, matched], backend=self.backend, last_from=size)
        k, v = for_all_heads(k, H), for_all_heads(v, H)
        places = blocks * size
        if places != T:
            q, k, v = (F.pad(x, (0, 0, 0, places - T)) for x in (q, k, v))
        whole = lengths is None and places == T  # every place of every block holds a token
        tokens = torch.full((1,), T, device=q.device) if lengths is None else lengths
        cut = [x.unflatten(2, (blocks, size)) for x in (q, k, v)]
        matching = self.matching(cut[0], cut[1], tokens)  # (B, H, nb, nb)
        k_matched, v_matched = self._matched(matching, cut[1], cut[2], None if whole else tokens)
        # Where no block is whole, the places that it lacks are empty.
        ends = None if whole else (tokens.expand(B), torch.where(tokens < size, tokens, places).expand(B))
        out, lse = with_lse(q, k_matched, v_matched, self.own_block, lengths=ends, **call)
        matched = out[:, :, :T], lse[:, :, :T]
        return merge_by_lse([own, matched], backend=self.backend, last_from=size if self.causal else 0)

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> QueryCache:
        """Keeps every token, as each block is a mixture of all earlier ones; see `Decodes.new_cache`."""
        if self.undecodable:
            super().new_cache(batch)
        return QueryCache(batch, self.kv_heads, self.head_dim, device, dtype, heads=self.heads)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: QueryCache, *, lengths: Tensor | None = None) -> Tensor:
        """q [B, H, n, D], k and v [B, Hkv, n, D] -> [B, H, n, D]; see `Decodes.decode`.

        All tokens are attended to again, O(T) a token: the matching is normalised over all rows so far, iteration by iteration.
        """
        lengths = self.check_decode(q, k, v, cache, lengths)
        with as_in_evaluation(self):
            position, exists = cache.add_all(q, k, v, lengths)
            q, k, v = (x[:, :, : cache.seen] for x in (cache.queries, cache.keys, cache.values))
            out = self(q, k, v, lengths=cache.positions)  # (B, H, T, D)
            at = position.clamp(max=cache.seen - 1)[:, None, :, None].expand(-1, self.heads, -1, self.head_dim)
            return out.gather(2, at).masked_fill(~exists[:, None, :, None], 0.0)

    def _matched_whole(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, D] of causal attention whose blocks are all full, as `_matched` gives them."""
        drawn, n = None, q.shape[2] // self.block_size
        if self.training and self.noise > 0:
            exact = torch.promote_types(q.dtype, torch.float32)
            drawn = q.new_empty((*q.shape[:2], n, n), dtype=exact).exponential_()
        return match_blocks(
            q,
            k,
            v,
            drawn,
            block_size=self.block_size,
            iterations=self.iterations,
            temperature=self.temperature,
            noise=self.noise,
            backend=self.backend,
        )

    def matching(self, q: Tensor, k: Tensor, tokens: Tensor) -> Tensor:
        """[B, H, nb, nb], how much of each key block each query block gets; q, k [B, H, nb, bs, D], tokens [B or 1]."""
        (_, _, blocks, size, D), exact = q.shape, torch.promote_types(q.dtype, torch.float32)
        number = torch.arange(blocks, device=q.device)
        filled = (tokens[:, None] - number * size).clamp(0, size)  # (B or 1, nb)
        counts = filled.clamp(min=1)[:, None, :, None]
        keys = k.sum(3, dtype=exact) / counts
        queries = queries_so_far(q, exact) if self.causal else q.sum(3, dtype=exact) / counts
        scores = queries @ keys.transpose(-1, -2) * (D**-0.5 / self.temperature)  # (B, H, nb, nb)
        if self.training and self.noise > 0:
            drawn = torch.empty_like(scores).exponential_().clamp(min=1e-20).log()
            scores = scores - self.noise / self.temperature * drawn
        if self.causal:
            return balance_causally(scores, (filled > 0).sum(1), self.iterations, self.backend)
        allowed = ((filled > 0)[:, :, None] & (filled > 0)[:, None, :])[:, None]
        return sinkhorn_normalised(scores, allowed, self.iterations)

    def _matched(self, matching: Tensor, k: Tensor, v: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, nb bs, D], the mean of all blocks by each row, place by place over tokens that exist.

        k, v: [B, H, nb, bs, D]. tokens: [B or 1], or None where they fill all blocks.
        """
        shares = matching.to(k.dtype)
        mixed = [(shares @ x.flatten(3)).view(k.shape) for x in (k, v)]
        if tokens is not None:
            blocks, size = k.shape[2:4]
            exists = (torch.arange(blocks * size, device=k.device) < tokens[:, None]).view(-1, 1, blocks, size)
            # The last block may be cut short: what it lacks does not make keys shorter.
            mass = matching @ exists.to(matching.dtype)  # (B, H, nb, bs)
            share = torch.where(mass > LEAST_MASS, matching.sum(-1, keepdim=True) / mass.clamp(min=LEAST_MASS), 0.0)
            mixed = [x * share[..., None].to(x.dtype) for x in mixed]
        k_matched, v_matched = (x.flatten(2, 3) for x in mixed)
        return k_matched, v_matched

    def cost(self, length: int) -> Cost:
        """Pairs of a query and a matched place count as pairs, up to all there are.

        `other_flops` is the scores of blocks and the mixing, a product of the nb * nb matrix with all keys and values, so
        quadratic in T / bs.
        """
        size, D, H = self.block_size, self.head_dim, self.heads
        blocks = -(-length // size)
        own = self.own_block.live_pairs(length, causal=self.causal)
        rows = max(0, blocks - (1 if self.causal else 0))
        queries = length - (blocks - rows) * min(size, length)
        scored = H * (own + queries * min(size, length))
        whole = H * (length * (length + 1) // 2 if self.causal else length * length)
        visited = visited_pairs(self.own_block, length, H, self.causal)
        visited += visited_pairs(self.own_block, blocks * size, H, False) if rows else 0
        mixing = H * (2 * D * blocks * blocks + 2 * rows * blocks * size * 2 * D)
        held = self.held_tokens(length) + 2 * H * D * length  # and queries
        return Cost(min(scored, whole), visited, 4 * D * scored, 4 * D * visited, mixing, state_bytes=held)


def sinkhorn_normalised(scores: Tensor, allowed: Tensor, iterations: int) -> Tensor:
    """exp of scores [B, H, n, n], rows and columns normalised in turn; 0 where not allowed [B or 1, 1, n, n]."""
    scores = scores.masked_fill(~allowed, NOTHING)
    for _ in range(iterations):
        for dim in (-1, -2):
            scores = (scores - torch.logsumexp(scores, dim, keepdim=True)).masked_fill(~allowed, NOTHING)
    return scores.exp()


sinkhorn = SinkhornAttention
