"""`attention=moba`: each query token picks key blocks by their mean key.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, nb blocks, bs tokens a block.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from longspan.attention.chosen_pairs import picked_pairs
from longspan.attention.content import ContentAttention
from longspan.attention.decoding import as_in_evaluation
from longspan.attention.errors import as_block_size, as_whole, wrong_setting
from longspan.attention.place import Place
from longspan.attention.token_cache import BlockMeanCache
from longspan.cost import Cost
from longspan_kernels.selected import block_means, choose_blocks, selected_attention


class MixtureOfBlocks(ContentAttention):
    """Mixture of block attention (arXiv:2502.13189): the query's own block, and those whose mean key it likes best.

    A query's score of a block is its dot with the block's mean key; the choice gets no gradient. Causal, as in the paper,
    a query picks among blocks before its own, and in its own block sees what is not after it. Both ways, it picks among all
    others. Each query head picks for itself.

    Args:
        block_size: tokens a block, a multiple of 16.
        top_k: blocks a query sees, its own always among them.
        max_length: the longest sequence, where it is known.
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
    """

    def __init__(
        self,
        *,
        block_size: int = 64,
        top_k: int = 4,
        **place: Unpack[Place],
    ) -> None:
        max_length = place.get("max_length")
        super().__init__(**place)
        self.block_size = as_block_size(block_size)
        self.top_k = as_whole("top_k", top_k, 1, "blocks a query sees, its own among them")
        if max_length is not None and top_k > -(-max_length // block_size):
            raise wrong_setting(
                "top_k",
                f"= {top_k} is more than the {-(-max_length // block_size)} blocks of {block_size} in {max_length} "
                f"tokens; give 1 to {-(-max_length // block_size)}, or a smaller attention.block_size",
            )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        return selected_attention(
            q,
            k,
            v,
            self.picks(q, k, lengths),
            self.block_size,
            causal=self.causal,
            lengths=lengths,
            dropout_p=self.dropped,
            backend=self.backend,
        )

    @torch.no_grad()
    def picks(self, q: Tensor, k: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, H, T, up to top_k] int32: the blocks that each query picks, its own first, -1 for none."""
        size = self.block_size
        n = min(self.top_k, -(-q.shape[2] // size)) - 1
        means = block_means(k, size, lengths=lengths, backend=self.backend)
        return choose_blocks(q, means, n, size, causal=self.causal, lengths=lengths, own=True, backend=self.backend)

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> BlockMeanCache:
        """Keeps every token, as any block may be picked again, and the mean key of each block; see `Decodes.new_cache`."""
        if self.undecodable:
            super().new_cache(batch)
        return BlockMeanCache(batch, self.kv_heads, self.head_dim, device, dtype, self.block_size)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: BlockMeanCache, *, lengths: Tensor | None = None) -> Tensor:
        """q [B, H, n, D], k and v [B, Hkv, n, D] -> [B, H, n, D]; see `Decodes.decode`."""
        lengths = self.check_decode(q, k, v, cache, lengths)
        with as_in_evaluation(self):
            if not cache.seen:
                cache.add(k, v, lengths)
                return self(q, k, v, lengths=lengths)
            position, exists = cache.add(k, v, lengths)
            picks = cache.picks(q, position, self.top_k - 1)
            out = cache.attend_to_blocks(q, picks, self.block_size, position)
        return out.masked_fill(~exists[:, None, :, None], 0.0)

    def cost(self, length: int) -> Cost:
        """Live pairs as `picked_pairs` counts them; visited ones are those of whole blocks. `other_flops` is the choice, a dot
        product for each query and block that it may pick."""
        size, D, H = self.block_size, self.head_dim, self.heads
        blocks, candidates = -(-length // size), 0
        for block in range(blocks):
            candidates += min(size, length - block * size) * (block if self.causal else blocks - 1)
        live = H * picked_pairs(length, size, self.top_k, self.causal)
        visited = H * length * min(self.top_k, blocks) * size
        held = self.held_tokens(length) + 4 * self.kv_heads * D * blocks  # and sums of blocks in float32
        return Cost(live, visited, 4 * D * live, 4 * D * visited, 2 * D * H * candidates, state_bytes=held)


moba = MixtureOfBlocks
