"""`attention=nsa`: a compressed view of all blocks, the blocks it finds important, and a window, mixed by learned gates.

Legend: B batch, H heads, Hkv key/value heads, G = H / Hkv, T tokens, D head width, nc compressed blocks, nb selection blocks.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.attention.base import visited_pairs
from longspan.attention.chosen_pairs import picked_pairs
from longspan.attention.compression import BlockCompression, attend_to_compressed, compressed_count
from longspan.attention.content import ContentAttention, with_lse, without_padding
from longspan.attention.decoding import as_in_evaluation
from longspan.attention.errors import as_block_size, as_whole, wrong_setting
from longspan.attention.place import Place
from longspan.attention.token_cache import CompressedCache
from longspan.config.errors import CallError
from longspan.cost import Cost
from longspan.patterns import Local
from longspan_kernels.selected import choose_important_blocks, gated_sum, query_gates, selected_attention

COMPRESSIONS = ("mlp", "mean")
GATES = ("query", "token")


class NativeSparseAttention(ContentAttention):
    """Native sparse attention (arXiv:2502.11089): three branches, each with a gate for each head and token.

    - Compressed: softmax attention over blocks that lie wholly in the past, each compressed to one key and value.
    - Selected: softmax attention over the tokens of `top_k` blocks, for each token and key/value group: its own, the one
      before, the first, and those to which the compressed branch gave most weight, summed over the group.
    - Window: the last `window` tokens.

    The paper is causal. Both ways, all compressed blocks are seen, all blocks compete and the window looks both ways. The
    paper takes gates from the token's features and projects keys and values once a branch: `gates="token"` and
    `branch_keys=True`, for which a model projects `key_heads` and `value_heads` instead of Hkv of each. By default, gates come
    from the token's query and the branches share keys and values, which any model has.

    Args:
        block_size: tokens a selection block, a multiple of 16.
        top_k: selection blocks a token sees, those that it always sees among them.
        compressed_block, compressed_stride: tokens a compressed block, and from one to the next; the stride divides both
            block sizes.
        window: as in `Local`.
        compression: "mlp" or "mean".
        branch_keys: each branch has keys and values of its own, the compressed one first, then the selected and the window's.
        gates: "query", or "token": the last heads of v hold the gates of a token before the sigmoid, [H, 3] and what fills up.
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
    """

    def __init__(
        self,
        *,
        block_size: int = 64,
        top_k: int = 4,
        compressed_block: int = 32,
        compressed_stride: int = 16,
        window: int = 128,
        compression: str = "mlp",
        branch_keys: bool = False,
        gates: str = "query",
        **place: Unpack[Place],
    ) -> None:
        max_length = place.get("max_length")
        super().__init__(**place)
        self.block_size = as_block_size(block_size)
        self.top_k = as_whole("top_k", top_k, 3, "blocks a token sees: its own, the one before, the first and others")
        if max_length is not None and top_k > -(-max_length // block_size):
            raise wrong_setting(
                "top_k",
                f"= {top_k} is more than the {-(-max_length // block_size)} blocks of {block_size} in {max_length} "
                "tokens; give fewer, or a smaller attention.block_size",
            )
        self.stride = as_whole("compressed_stride", compressed_stride, 1, "tokens from one compressed block to the next")
        self.compressed_block = as_whole("compressed_block", compressed_block, 1, "tokens a compressed block")
        for key, size in (("compressed_block", compressed_block), ("block_size", block_size)):
            if size % compressed_stride:
                raise wrong_setting(
                    "compressed_stride",
                    f"= {compressed_stride} does not divide attention.{key} = {size}; give a divisor of both",
                )
        if compression not in COMPRESSIONS:
            raise wrong_setting("compression", f"= {compression!r} is unknown; choose one of {', '.join(COMPRESSIONS)}")
        self.window = Local(as_whole("window", window, 1, "a number of keys"))
        learned = compression == "mlp"
        self.compress_k = BlockCompression(compressed_block, compressed_stride, self.head_dim, learned)
        self.compress_v = BlockCompression(compressed_block, compressed_stride, self.head_dim, learned)
        if gates not in GATES:
            raise wrong_setting("gates", f"= {gates!r} is unknown; choose one of {', '.join(GATES)}")
        self.branch_keys = bool(branch_keys)
        self.key_heads = self.kv_heads * (3 if branch_keys else 1)
        self.value_heads = self.key_heads + (-(-3 * self.heads // self.head_dim) if gates == "token" else 0)
        # Every gate starts half open.
        self.gate_weight = nn.Parameter(torch.zeros(self.heads, self.head_dim, 3)) if gates == "query" else None
        self.gate_bias = nn.Parameter(torch.zeros(self.heads, 1, 3))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        values = self._branches(v)
        coarse_v = self.compress_v(values[0], self.backend) if self._compressed(q.shape[2]) else None
        gates, queries = self._gates(q, v)
        return self._mixed(queries, self._branches(k), values, coarse_v, gates, lengths)

    def values_for_map(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        """Gates that come from tokens are taken as half open: a map has no tokens."""
        q, k, v = (without_padding(x, lengths) for x in (q, k, v))
        mean = v.unfold(2, self.compressed_block, self.stride).mean(-1) if self._compressed(q.shape[2]) else None
        gates = self._gates(q, v)[0] if self.gate_weight is not None else q.new_full((*q.shape[:3], 3), 0.5)
        return self._mixed((q, q, q), self._branches(k), (v, v, v), mean, gates, lengths)

    def _branches(self, x: Tensor) -> tuple[Tensor, ...]:
        """The keys or values [B, Hkv, T, D] of the compressed branch, the selected one and the window."""
        if x.shape[1] < self.key_heads:
            raise CallError(f"k has {x.shape[1]} heads: NativeSparseAttention takes {self.key_heads} here, Hkv of each branch")
        return x[:, : self.key_heads].split(self.kv_heads, 1) if self.branch_keys else (x[:, : self.kv_heads],) * 3

    def _gates(self, q: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Gates [B, H, T, 3] by q [B, H, T, D], or by the last heads of v; and q for each of the branches."""
        if self.gate_weight is not None:
            return query_gates(q, self.gate_weight, self.gate_bias, self.backend)
        numbers = v[:, self.key_heads :].transpose(1, 2).flatten(2)[..., : 3 * self.heads]  # (B, T, 3 H)
        numbers = numbers.unflatten(-1, (self.heads, 3)).transpose(1, 2)
        return torch.sigmoid(numbers + self.gate_bias.to(q.dtype)), (q, q, q)

    def _compressed(self, length: int) -> int:
        return compressed_count(length, self.compressed_block, self.stride)

    def _mixed(
        self,
        q: tuple[Tensor, ...],
        k: tuple[Tensor, ...],
        v: tuple[Tensor, ...],
        coarse_v: Tensor | None,
        gates: Tensor,
        lengths: Tensor | None,
    ) -> Tensor:
        """The gated sum of the branches, q, k and v of each."""
        coarse, picks = self._coarse(q[0], k[0], coarse_v, lengths)
        call: dict[str, Any] = {"causal": self.causal, "lengths": lengths, "dropout_p": self.dropped, "backend": self.backend}
        selected = selected_attention(q[1], k[1], v[1], picks, self.block_size, **call)
        near, _ = with_lse(q[2], k[2], v[2], self.window, **call)
        if coarse is None:
            out = gates[..., 1:2] * selected + gates[..., 2:3] * near
        else:
            out = gated_sum(gates, (coarse, selected, near), self.backend)
        return without_padding(out.to(q[0].dtype), lengths)

    def _coarse(self, q: Tensor, k: Tensor, coarse_v: Tensor | None, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The compressed branch [B, H, T, D] (None where no block fits), and the picks [B, Hkv, T, n]."""
        (B, H, T, D), Hkv = q.shape, k.shape[1]
        if coarse_v is None:
            out, keys = None, q.new_empty((B, Hkv, 0, D))
            lse = q.new_full((B, H, T), float("-inf"), dtype=torch.promote_types(q.dtype, torch.float32))
        else:
            keys = self.compress_k(k, self.backend)  # (B, Hkv, nc, D)
            out, lse = attend_to_compressed(
                q,
                keys,
                coarse_v,
                self.compressed_block,
                self.stride,
                causal=self.causal,
                lengths=lengths,
                dropout_p=self.dropped,
                backend=self.backend,
            )
        picks = choose_important_blocks(
            q,
            keys,
            lse,
            min(self.top_k, -(-T // self.block_size)),
            self.block_size,
            self.compressed_block,
            self.stride,
            causal=self.causal,
            lengths=lengths,
            backend=self.backend,
        )
        return out, picks

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CompressedCache:
        """Keeps every token, as any block may be selected again, and each full block compressed; see `Decodes.new_cache`."""
        if self.undecodable:
            super().new_cache(batch)
        sizes = (self.compressed_block, self.stride, self.kv_heads)
        return CompressedCache(batch, self.key_heads, self.head_dim, device, dtype, *sizes)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: CompressedCache, *, lengths: Tensor | None = None) -> Tensor:
        """q [B, H, n, D], k and v [B, Hkv, n, D] -> [B, H, n, D]; see `Decodes.decode`."""
        lengths = self.check_decode(q, k, v, cache, lengths)
        with as_in_evaluation(self):
            empty, before = not cache.seen, cache.positions
            position, exists = cache.add(k, v[:, : self.key_heads], lengths)
            cache.compress(before, q.shape[2], self.compress_k, self.compress_v)
            if empty:
                return self(q, k, v, lengths=lengths)
            return self._decoded(q, self._gates(q, v)[0], cache, position).masked_fill(~exists[:, None, :, None], 0.0)

    def _decoded(self, q: Tensor, gates: Tensor, cache: CompressedCache, position: Tensor) -> Tensor:
        """All three branches for new tokens at position [B, n] that the cache holds already."""
        (B, H, n, D), Hkv, size = q.shape, self.kv_heads, self.block_size
        of = [slice(n * Hkv, (n + 1) * Hkv) if self.branch_keys else slice(None) for n in range(3)]
        keys, values = cache.coarse_keys, cache.coarse_values
        last = torch.arange(keys.shape[2], device=q.device) * self.stride + self.compressed_block - 1
        seen = (last <= position[..., None]) & (last < last[-1])  # (B, n, nc), without the place for blocks that are not full
        scores = q.view(B, Hkv, H // Hkv, n, D) @ keys[:, :, None].transpose(-1, -2) * D**-0.5  # (B, Hkv, G, n, nc)
        kept, nothing = seen[:, None, None], ~seen.any(-1)[:, None, None, :, None]
        scores = scores.to(torch.promote_types(q.dtype, torch.float32)).masked_fill(~kept, float("-inf"))
        weights = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
        coarse = (weights.to(q.dtype) @ values[:, :, None]).view(B, H, n, D)
        blocks = -(-cache.places // size)
        importance = self._importance(weights.sum(2), blocks)  # (B, Hkv, n, nb)
        number, own = torch.arange(blocks, device=q.device), (position // size)[:, None, :, None]
        importance = importance.masked_fill((number == own - 1) | (number == 0), torch.finfo(importance.dtype).max)
        best = importance.masked_fill(number >= own, float("-inf")).topk(min(self.top_k - 1, blocks), -1)
        picks = torch.where(best.values > float("-inf"), best.indices, -1)
        selected = cache.attend_to_blocks(q, torch.cat((own.expand(B, Hkv, n, 1), picks), -1), size, position, of[1])
        recent = position[:, None, :, None] - torch.arange(self.window.window, device=q.device)
        near = cache.attend(q, recent.expand(B, Hkv, n, -1), (recent >= 0).expand(B, Hkv, n, -1), of[2])
        return gates[..., 0:1] * coarse + gates[..., 1:2] * selected + gates[..., 2:3] * near

    def _importance(self, weights: Tensor, blocks: int) -> Tensor:
        """[..., nb]: weights [..., nc] of compressed keys, by the strides that each shares with a block (equation 9)."""
        strides, each = blocks * (self.block_size // self.stride), self.compressed_block // self.stride
        room = F.pad(weights, (0, max(0, strides + each - weights.shape[-1])))
        shared = sum((F.pad(room, (later, 0))[..., :strides] for later in range(each)), torch.zeros_like(room[..., :strides]))
        return shared.unflatten(-1, (blocks, -1)).sum(-1)

    def cost(self, length: int) -> Cost:
        """Pairs of a query with a compressed key count as pairs; pairs that several branches hold count once at most.

        Live FLOPs are those of all branches. Visited pairs: each pick is visited whole, and the compressed branch scores the
        keys that a query sees twice, for its output and for the choice. `other_flops` is the compression and the gates.

        That branch is counted by the pairs that queries see, not by tiles, and the choice as a whole pair, though it takes the
        product with keys alone. torch's FLOP counter sees 14 % more at 256 tokens (D = 64, causal), 3 % more at 1,024 and
        14 % less at 16,384. Committed records are counted like this, and would no longer agree.
        """
        size, D, H = self.block_size, self.head_dim, self.heads
        blocks, nc = -(-length // size), self._compressed(length)
        selected = picked_pairs(length, size, self.top_k, self.causal)
        last = self.compressed_block - 1
        coarse = sum(length - c * self.stride - last for c in range(nc)) if self.causal else length * nc
        window = self.window.live_pairs(length, causal=self.causal)
        scored = H * (selected + coarse + window)
        whole = length * (length + 1) // 2 if self.causal else length * length
        visited = H * (length * min(self.top_k, blocks) * size + 2 * coarse)
        visited += visited_pairs(self.window, length, H, self.causal)
        other = self.kv_heads * (self.compress_k.flops(length) + self.compress_v.flops(length))
        other += H * length * 2 * D * 3 if self.gate_weight is not None else 0
        held = self.held_tokens(length) + 4 * self.kv_heads * D * nc  # and compressed keys and values
        return Cost(min(scored, H * whole), visited, 4 * D * scored, 4 * D * visited, other, state_bytes=held)


nsa = NativeSparseAttention
