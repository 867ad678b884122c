"""`attention=dsa`: each token attends to the tokens that a small trained indexer scores highest.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, n picks a query.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from longspan.attention.content import ContentAttention, with_lse, without_padding
from longspan.attention.decoding import as_in_evaluation
from longspan.attention.errors import as_whole, wrong_setting
from longspan.attention.indexer import LightningIndexer, imitation_loss
from longspan.attention.place import Place
from longspan.attention.token_cache import IndexCache
from longspan.cost import Cost
from longspan.patterns import Full
from longspan_kernels.launch import without_autocast
from longspan_kernels.selected import attend_to_tokens, choose_tokens


class DeepSeekSparseAttention(ContentAttention):
    """DeepSeek sparse attention (arXiv:2512.02556), causal: the `top_k` tokens of highest index score, for all heads the same.

    The indexer learns to imitate the attention that it chooses for: `auxiliary_loss` is the KL divergence from the mean of
    the heads' weights to the softmax of its scores, and no other gradient reaches it. For the first `warmup_steps` training
    steps attention is dense and the indexer imitates all of it; then attention is sparse, and so is what it imitates. Outside
    of training attention is sparse. Sequences of up to `top_k` tokens are attended whole.

    Whoever trains adds `auxiliary_loss` to the loss after each forward pass, and calls `end_step` once an optimizer step. Where
    the paper's indexer reads the token's features, this one reads its query and key.

    Args:
        top_k: tokens a query sees.
        indexer_heads, indexer_width: of the indexer.
        warmup_steps: training steps with dense attention.
        indexer_loss: what the KL divergence is multiplied by.
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`; causal alone, without dropout.
    """

    steps: Tensor

    def __init__(
        self,
        *,
        top_k: int = 512,
        indexer_heads: int = 4,
        indexer_width: int = 64,
        warmup_steps: int = 200,
        indexer_loss: float = 1.0,
        **place: Unpack[Place],
    ) -> None:
        super().__init__(**place)
        if not self.causal:
            raise wrong_setting("", "= 'dsa' is causal: its indexer scores earlier tokens; choose it for language modelling")
        if self.dropout:
            raise wrong_setting("dropout", f"= {self.dropout}: dsa drops no weights; give 0")
        self.top_k = as_whole("top_k", top_k, 1, "tokens a query sees")
        self.warmup_steps = as_whole("warmup_steps", warmup_steps, 0, "training steps with dense attention")
        self.coefficient = float(indexer_loss)
        self.indexer = LightningIndexer(
            as_whole("indexer_heads", indexer_heads, 1, "heads of the indexer"),
            as_whole("indexer_width", indexer_width, 16, "numbers a head of the indexer"),
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._steps = 0  # the same number, which asks no device
        self._seen: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = []

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> Tensor:
        """See `ContentAttention.forward`."""
        self._seen = []
        return super().forward(q, k, v, **call)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        if q.shape[2] <= self.top_k or (self.training and self._steps < self.warmup_steps):
            picks = None
            out, _ = with_lse(q, k, v, Full(), causal=True, lengths=lengths, backend=self.backend)
        else:
            picks = self.picks(q, k, lengths)
            out = attend_to_tokens(q, k, v, picks, backend=self.backend)
        if self.training:
            self._seen.append((q.detach(), k.detach(), picks, lengths))
        return out

    @torch.no_grad()
    def picks(self, q: Tensor, k: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, T, n] int32: the tokens that each query sees, -1 for none."""
        queries, keys, weights = self.indexer(q, k)
        return choose_tokens(queries, keys, weights, min(self.top_k, q.shape[2]), lengths=lengths, backend=self.backend)

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> IndexCache:
        """Keeps every token, as any may be picked again, and the indexer's key of each; see `Decodes.new_cache`."""
        return IndexCache(batch, self.kv_heads, self.head_dim, device, dtype, self.indexer.width)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: IndexCache, *, lengths: Tensor | None = None) -> Tensor:
        """q [B, H, n, D], k and v [B, Hkv, n, D] -> [B, H, n, D]; see `Decodes.decode`."""
        lengths = self.check_decode(q, k, v, cache, lengths)
        with as_in_evaluation(self):
            first = not cache.seen
            position, exists = cache.add(k, v, lengths)
            queries, keys, weights = self.indexer(q, k)
            cache.add_indexed(keys, position, exists)
            if first:
                return self(q, k, v, lengths=lengths)
            chosen, live = cache.tokens(queries, weights, position, self.top_k)
            chosen, live = (x[:, None].expand(-1, self.kv_heads, -1, -1) for x in (chosen, live))
            out = cache.attend(q, chosen, live)
        return out.masked_fill(~exists[:, None, :, None], 0.0)

    def auxiliary_loss(self) -> Tensor:
        """`indexer_loss` times the KL divergence of the last forward pass in training, 0 where there is none."""
        parts = []
        for q, k, picks, lengths in self._seen:
            # as in the forward pass precision is chosen by hand: the loss is of the scores that choose
            with without_autocast(q):
                parts.append(imitation_loss(self.indexer(q, k), q, k, picks, lengths) * len(q))
        rows = sum(len(q) for q, _, _, _ in self._seen)
        self._seen = []
        if not parts:
            return self.indexer.query.weight.new_zeros(())
        return self.coefficient * torch.stack(parts).sum() / rows

    def end_step(self) -> None:
        """After each optimizer step."""
        self._seen = []
        self._steps += 1
        self.steps.fill_(self._steps)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._steps = int(self.steps)

    def cost(self, length: int) -> Cost:
        """Once the indexer chooses. Live pairs are exact: a query sees all earlier tokens up to `top_k`. `other_flops` is the
        indexer: its projections and its scores of all earlier tokens."""
        picked = min(self.top_k, length)
        live = self.heads * (picked * (picked + 1) // 2 + (length - picked) * picked)
        visited = self.heads * length * picked
        per_pair = 4 * self.head_dim
        chooses = self.indexer.flops(length) if length > self.top_k else 0
        held = self.held_tokens(length) + 2 * self.indexer.width * length  # and the indexer's keys
        return Cost(live, visited, per_pair * live, per_pair * visited, other_flops=chooses, state_bytes=held)


dsa = DeepSeekSparseAttention
