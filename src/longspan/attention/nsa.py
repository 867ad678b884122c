"""`attention=nsa`: a compressed view of all blocks, the blocks it finds important, and a window, mixed by learned gates.

Legend: B batch, H heads, Hkv key/value heads, G = H / Hkv, T tokens, D head width, nc compressed blocks, nb selection blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.attention.base import visited_pairs
from longspan.attention.compression import BlockCompression, compressed_count, overlaps
from longspan.attention.content import ContentAttention, with_lse, without_padding
from longspan.attention.errors import AttentionConfigError, as_block_size, as_whole
from longspan.attention.merging import merged
from longspan.attention.picked_blocks import attend_to_picks, tile_sides
from longspan.cost import Cost
from longspan.patterns import BigBird, Local
from longspan_kernels.block_sparse import choose_scored_blocks

COMPRESSIONS = ("mlp", "mean")
SCORES_AT_ONCE = 1 << 23  # query-block scores held at a time
ALWAYS = torch.finfo(torch.float32).max  # the importance of blocks that every query selects


class NativeSparseAttention(ContentAttention):
    """Native sparse attention (arXiv:2502.11089): three branches, each with a gate for each head and token.

    - Compressed: softmax attention over blocks that lie wholly in the past, each compressed to one key and value.
    - Selected: softmax attention over the tokens of `top_k` blocks, for each token and key/value group: its own, the one
      before, the first, and those to which the compressed branch gave most weight, summed over the group.
    - Window: the last `window` tokens.

    The paper is causal. Both ways, all compressed blocks are seen, all blocks compete and the window looks both ways. Where
    the paper takes gates from the token's features and projects keys and values once a branch, gates here come from the
    token's query and the branches share the model's keys and values.

    Args:
        block_size: tokens a selection block, a multiple of 16.
        top_k: selection blocks a token sees, those that it always sees among them.
        compressed_block, compressed_stride: tokens a compressed block, and from one to the next; the stride divides both
            block sizes.
        window: as in `Local`.
        compression: "mlp" or "mean".
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
    """

    takes_segments = False

    def __init__(
        self, *, block_size: int = 64, top_k: int = 4, compressed_block: int = 32, compressed_stride: int = 16,
        window: int = 128, compression: str = "mlp", dropout: float = 0.0, backend: str = "auto", heads: int, head_dim: int,
        causal: bool, kv_heads: int | None = None, layer: int = 0, max_length: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(heads=heads, kv_heads=kv_heads, head_dim=head_dim, causal=causal, dropout=dropout, backend=backend)
        self.block_size = as_block_size(block_size)
        self.top_k = as_whole("top_k", top_k, 3, "blocks a token sees: its own, the one before, the first and others")
        if max_length is not None and top_k > -(-max_length // block_size):
            raise AttentionConfigError(
                "top_k", f"= {top_k} is more than the {-(-max_length // block_size)} blocks of {block_size} in {max_length} "
                "tokens; give fewer, or a smaller attention.block_size",
            )  # fmt: skip
        self.stride = as_whole("compressed_stride", compressed_stride, 1, "tokens from one compressed block to the next")
        self.compressed_block = as_whole("compressed_block", compressed_block, 1, "tokens a compressed block")
        for key, size in (("compressed_block", compressed_block), ("block_size", block_size)):
            if size % compressed_stride:
                raise AttentionConfigError(
                    "compressed_stride",
                    f"= {compressed_stride} does not divide attention.{key} = {size}; give a divisor of both",
                )
        if compression not in COMPRESSIONS:
            raise AttentionConfigError("compression", f"= {compression!r} is unknown; choose one of {', '.join(COMPRESSIONS)}")
        self.window = Local(as_whole("window", window, 1, "a number of keys"))
        self.own_block = BigBird(block_size, window_blocks=1, random_blocks=0, global_blocks=0)
        learned = compression == "mlp"
        self.compress_k = BlockCompression(compressed_block, compressed_stride, head_dim, learned)
        self.compress_v = BlockCompression(compressed_block, compressed_stride, head_dim, learned)
        # Every gate starts half open.
        self.gate_weight = nn.Parameter(torch.zeros(heads, head_dim, 3))
        self.gate_bias = nn.Parameter(torch.zeros(heads, 1, 3))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        return self._mixed(q, k, v, self.compress_v(v) if self._compressed(q.shape[2]) else None, lengths)

    def values_for_map(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        mean = v.unfold(2, self.compressed_block, self.stride).mean(-1) if self._compressed(q.shape[2]) else None
        return self._mixed(q, k, v, mean, lengths)

    def _compressed(self, length: int) -> int:
        return compressed_count(length, self.compressed_block, self.stride)

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, coarse_v: Tensor | None, lengths: Tensor | None) -> Tensor:
        gates = torch.sigmoid(q @ self.gate_weight.to(q.dtype) + self.gate_bias.to(q.dtype))  # (B, H, T, 3)
        call = {"causal": self.causal, "lengths": lengths, "dropout_p": self.dropped, "backend": self.backend}
        near, _ = with_lse(q, k, v, self.window, **call)
        own = with_lse(q, k, v, self.own_block, **call)
        coarse, picks = self._coarse(q, k, coarse_v, lengths)
        parts = [own]
        if picks.shape[-1]:
            parts += attend_to_picks(
                q, k, v, picks, self.block_size, k_lengths=None if self.causal else lengths, dropout_p=self.dropped,
                backend=self.backend,
            )  # fmt: skip
        out = gates[..., 1:2] * merged(parts) + gates[..., 2:3] * near
        if coarse is not None:
            out = out + gates[..., 0:1] * coarse
        return without_padding(out.to(v.dtype), lengths)

    def _coarse(self, q: Tensor, k: Tensor, coarse_v: Tensor | None, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The compressed branch [B, H, T, D] (None where no block fits), and the picks [B, Hkv, T, n] beside a token's own."""
        (B, H, T, _), Hkv = q.shape, k.shape[1]
        blocks = -(-T // self.block_size)
        n = min(self.top_k, blocks) - 1
        keys = None if coarse_v is None else self.compress_k(k)  # (B, Hkv, nc, D)
        nc = 0 if keys is None else keys.shape[2]
        share = overlaps(nc, blocks, self.compressed_block, self.stride, self.block_size, q.device)
        last = torch.arange(nc, device=q.device) * self.stride + self.compressed_block - 1  # (nc) last token of each
        tokens = torch.full((1,), T, device=q.device) if lengths is None else lengths
        out, picks = [], []
        step = max(1, SCORES_AT_ONCE // (B * H * max(nc, blocks)))
        for first in range(0, T, step):
            rows = torch.arange(first, min(T, first + step), device=q.device)
            part = q[:, :, first : first + step]
            importance = torch.zeros((B, Hkv, len(rows), blocks), device=q.device)
            if keys is not None and coarse_v is not None:
                seen = last <= (rows[:, None] if self.causal else tokens[:, None, None] - 1)  # (B or 1 or none, rows or 1, nc)
                seen = seen.expand(len(tokens), len(rows), nc)[:, None]
                out.append(self._over_compressed(part, keys, coarse_v, seen))
                importance = self._importance(part, keys, seen, share)
            picks.append(self._picks(importance, first, T, lengths, n))
        return torch.cat(out, 2) if out else None, torch.cat(picks, 2)

    def _over_compressed(self, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        dead = ~seen.any(-1, keepdim=True)
        # Repeated, as torch's kernels for masks know no groups; compressed keys are few.
        keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen | dead, dropout_p=self.dropped)
        return out.masked_fill(dead, 0.0)

    @torch.no_grad()
    def _importance(self, q: Tensor, keys: Tensor, seen: Tensor, share: Tensor) -> Tensor:
        """[B, Hkv, rows, nb] weight that the compressed branch gives each selection block, summed over the group (eq. 10)."""
        B, H, R, D = q.shape
        Hkv, exact = keys.shape[1], torch.promote_types(q.dtype, torch.float32)
        grouped = q.view(B, Hkv, H // Hkv, R, D).to(exact)
        scores = grouped @ keys.to(exact)[:, :, None].transpose(-1, -2) * D**-0.5
        seen = seen[:, None]
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
        return weights.sum(2) @ share.to(exact)

    @torch.no_grad()
    def _picks(self, importance: Tensor, first: int, length: int, lengths: Tensor | None, n: int) -> Tensor:
        """[B, Hkv, rows, n] by the importance [B, Hkv, rows, nb] of the tokens from `first` on."""
        number = torch.arange(importance.shape[-1], device=importance.device)
        own = (first + torch.arange(importance.shape[2], device=importance.device))[:, None] // self.block_size
        always = (number == own - 1) | (number == 0)
        return choose_scored_blocks(
            importance.masked_fill(always, ALWAYS), n, self.block_size, length, causal=self.causal, first_row=first,
            lengths=lengths, backend=self.backend,
        )  # fmt: skip

    def cost(self, length: int) -> Cost:
        """Pairs of a query with a compressed key count as pairs; pairs that several branches hold count once at most.

        Live FLOPs are those of all branches. Visited pairs: the compressed branch scores all its keys, twice (for its output
        and for the choice); of each pick, a key block pads its queries by less than a tile at most. `other_flops` is the
        compression and the gates.
        """
        size, D, H = self.block_size, self.head_dim, self.heads
        blocks, nc = -(-length // size), self._compressed(length)
        selected = 0
        for block in range(blocks):
            tokens = min(size, length - block * size)
            picked = min(self.top_k - 1, block if self.causal else blocks - 1) * size
            own = tokens * (tokens + 1) // 2 if self.causal else tokens * tokens
            selected += own + tokens * picked if self.causal else tokens * min(length, tokens + picked)
        last = self.compressed_block - 1
        coarse = sum(length - c * self.stride - last for c in range(nc)) if self.causal else length * nc
        window = self.window.live_pairs(length, causal=self.causal)
        scored = H * (selected + coarse + window)
        whole = length * (length + 1) // 2 if self.causal else length * length
        tile_q, _ = tile_sides(torch.empty((1, H, 1, D), dtype=torch.bfloat16), size)
        visited = H * 2 * nc * length + sum(
            visited_pairs(p, length, H, D, self.causal, self.backend) for p in (self.window, self.own_block)
        )
        n = max(0, min(self.top_k, blocks) - 1)
        visited += n * (H * length + self.kv_heads * blocks * (tile_q - 1)) * size
        other = self.kv_heads * (self.compress_k.flops(length) + self.compress_v.flops(length)) + H * length * 2 * D * 3
        return Cost(min(scored, H * whole), visited, 4 * D * scored, 4 * D * visited, other)


nsa = NativeSparseAttention
