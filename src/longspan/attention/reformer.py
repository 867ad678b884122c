"""`attention=reformer`: tokens attend to tokens of their hash bucket.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, R rounds of hashing.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from longspan.attention.bucket_cache import BucketCache
from longspan.attention.buckets import Chunks, kept_of_even_buckets, pairs_of_even_buckets
from longspan.attention.content import ContentAttention, for_all_heads, with_lse, without_padding
from longspan.attention.decoding import as_in_evaluation
from longspan.attention.errors import as_block_size, as_whole, wrong_setting
from longspan.attention.hashing import buckets_of, directions, factors
from longspan.attention.key_cache import existing
from longspan.attention.place import Place
from longspan.config.errors import CallError
from longspan.cost import Cost
from longspan_kernels.bucketed import Buckets, bucket_tables, bucketed_attention, hash_keys, served, tile_for
from longspan_kernels.selected import NOTHING, merge_by_lse

CHUNKS = {"aligned": "aligned", "sorted": "sorted", "transformers": "around"}


class HashedAttention(ContentAttention):
    """Reformer's attention (arXiv:2001.04451): locality-sensitive hashing with shared queries and keys.

    In each of several rounds tokens are hashed to buckets by random rotations, sorted by bucket, and cut into chunks; a
    token sees what its chunk and the one before hold of its bucket. Rounds merge through their log-sum-exps. A pair that
    several rounds find counts once, as in the paper: a later round leaves out what an earlier one holds. A token does not
    see itself unless it sees nothing else.

    Keys are the queries, brought to unit length; scores are q . k without a further scale, as in the authors' code. The
    model sees `shares_qk` and makes no projection for keys; the argument k is not looked at.

    Rotations are drawn anew in each training step; in evaluation they are those of `seed` + layer.

    Args:
        chunk: tokens a chunk, a multiple of 16.
        buckets: a power of two; None for about twice as many as `max_length` has chunks, whatever the length of a
            sequence, so that its buckets follow neither from padding nor from tokens still to come.
        rounds: R.
        chunks: "aligned" (each bucket begins a chunk: nothing a token sees depends on later ones), "sorted" (the paper's:
            the sorted sequence is cut wherever a chunk is full) or "transformers" (sorted; any bucket counts, the first
            chunk looks back to the last, and pairs count as often as rounds find them).
        seed: of the rotations in evaluation.
        max_length: the longest sequence; None, with `buckets` None, makes buckets by the padded length of each call.
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
    """

    shares_qk = True
    eval_rotations: Tensor

    def __init__(
        self,
        *,
        chunk: int = 64,
        buckets: int | None = None,
        rounds: int = 4,
        chunks: str = "aligned",
        seed: int = 0,
        **place: Unpack[Place],
    ) -> None:
        max_length = place.get("max_length")
        super().__init__(**place)
        self.chunk, self.rounds = as_block_size(chunk, "chunk"), as_whole("rounds", rounds, 1, "rounds of hashing")
        if buckets is not None and (as_whole("buckets", buckets, 2, "a power of two") & (buckets - 1)):
            near = 1 << (buckets.bit_length() - 1)
            raise wrong_setting("buckets", f"= {buckets} is no power of two; give {near} or {2 * near}, or null")
        if buckets is not None and max_length is not None and buckets > max_length:
            raise wrong_setting("buckets", f"= {buckets} is more than the {max_length} tokens; give fewer, or null")
        if chunks not in CHUNKS:
            raise wrong_setting("chunks", f"= {chunks!r} is unknown; choose one of {', '.join(CHUNKS)}")
        self.buckets, self.cut, self.once = buckets, CHUNKS[chunks], chunks != "transformers"
        generator = torch.Generator().manual_seed(as_whole("seed", seed, 0, "a seed") + place.get("layer", 0))
        self.max_length = max_length or 0
        bits = self.buckets_at(1 << 24 if max_length is None else max_length).bit_length()
        most = max(directions(1 << b) for b in range(1, bits))
        self.register_buffer(
            "eval_rotations", torch.randn(self.heads, self.head_dim, rounds, most, generator=generator), persistent=False
        )

    @property
    def depends_on_padding(self) -> bool:
        """Whether buckets follow from the padded length; predictions then pad each sequence by its own length."""
        return not (self.buckets or self.max_length)

    def buckets_at(self, length: int) -> int:
        """Buckets for `length` tokens or the longest sequence; as in the paper a bucket holds half a chunk of that."""
        return self.buckets or max(2, 1 << (2 * -(-max(length, self.max_length) // self.chunk) - 1).bit_length())

    def chunk_at(self, length: int) -> int:
        """Places of a chunk for `length` tokens: no more than all of them fill, in whole tiles."""
        return self.chunk if length >= self.chunk else max(1, -(-length // 16)) * 16

    def rotations(self, count: int, q: Tensor) -> Tensor:
        """[H, D, R, count] directions of a call, in float32 at least."""
        exact = torch.promote_types(q.dtype, torch.float32)
        if not self.training:
            drawn = self.eval_rotations.shape[-1]
            if count > drawn:
                raise CallError(
                    f"q has {q.shape[2]} tokens, whose buckets take {count} rotations, and {drawn} were drawn for "
                    "max_length; give a larger max_length, or a number of buckets"
                )
            return self.eval_rotations[..., :count].to(exact)
        return torch.randn((self.heads, self.head_dim, self.rounds, count), device=q.device, dtype=exact)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        if self.once and served(self.backend, q, v):
            return self._by_kernels(q, for_all_heads(v, self.heads), lengths)
        return self._by_layout(q, v, lengths)

    def _by_kernels(self, q: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        """All rounds at once, by kernels that know chunks; they look at no padding."""
        (_, _, T, D), aligned = q.shape, self.cut == "aligned"
        with torch.no_grad():
            count, size = self.buckets_at(T), self.chunk_at(T)
            how = Buckets(
                self.rounds, size, tile_for(size, D, q.element_size()), aligned, self.causal, itself=False, unit_keys=True
            )
            keys = hash_keys(q, self.rotations(directions(count), q), factors(count), lengths)
            tables = bucket_tables(keys, self.rounds, count, size, how.tile, aligned)
        return bucketed_attention(q, v, tables, how, scale=1.0, lengths=lengths, dropout_p=self.dropped)

    def _by_layout(self, q: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        """Each round is a layout of block-sparse attention: on any device."""
        (B, H, T, D), R = q.shape, self.rounds
        q, v = without_padding(q, lengths), for_all_heads(without_padding(v, lengths), H)
        exact = q.to(torch.promote_types(q.dtype, torch.float32))
        k = of_unit_length(exact).to(q.dtype)
        with torch.no_grad():
            chunks = self.order(q, lengths)
            excluded = self.excluded(chunks, B * H) if self.once else 2 * torch.arange(T, device=q.device)[None, None].int()
            same = chunks.bucket if self.cut == "sorted" else None  # there a pair needs equal buckets
        q_all, k_all, v_all = (x[:, :, None].expand(B, H, R, T, D).reshape(B * H * R, 1, T, D) for x in (q, k, v))
        out, lse = with_lse(
            q_all,
            k_all,
            v_all,
            chunks.layout(q_all, self.causal, excluded),
            segments=same,
            scale=1.0,
            dropout_p=self.dropped,
            backend=self.backend,
        )
        parts = [(o, s) for o, s in zip(out.view(B, H, R, T, D).unbind(2), lse.view(B, H, R, T).unbind(2), strict=True)]
        alone = torch.stack([s for _, s in parts]).detach().amax(0) <= NOTHING / 2
        return without_padding(torch.where(alone[..., None], v, merge_by_lse(parts, backend=self.backend)), lengths)

    @torch.no_grad()
    def order(self, q: Tensor, lengths: Tensor | None = None) -> Chunks:
        """Chunks of the B H R sequences of all heads and rounds, for q [B, H, T, D]."""
        B, H, T, _ = q.shape
        count = self.buckets_at(T)
        exact = q.detach().to(torch.promote_types(q.dtype, torch.float32))
        bucket = buckets_of(exact, self.rotations(directions(count), q), count)  # (B, H, R, T)
        if lengths is not None:
            bucket = bucket.masked_fill((torch.arange(T, device=q.device) >= lengths[:, None])[:, None, None], -1)
        return Chunks.of(bucket.view(B * H * self.rounds, T), count, self.chunk_at(T), self.cut)

    def excluded(self, chunks: Chunks, sequences: int) -> Tensor:
        """[B H R, R, T]: what each round leaves out, the token itself first and then what earlier rounds hold."""
        R, T = self.rounds, chunks.bucket.shape[1]
        itself = 2 * torch.arange(T, device=chunks.order.device).int()
        numbers = chunks.numbers().view(sequences, 1, R, T)  # one row of these for each round
        earlier = torch.ones(R, R, dtype=torch.bool, device=itself.device).tril(-1)  # [round, other round]
        rows = torch.where(earlier[None, :, :, None], numbers, itself)  # (B H, R, R, T)
        return torch.cat([itself.expand(sequences, R, 1, T), rows[:, :, : R - 1]], 2).view(sequences * R, R, T)

    # -- decoding ---------------------------------------------------------------------------------------------------

    @property
    def _exact(self) -> bool:
        return self.cut == "aligned" and not self.depends_on_padding

    @property
    def undecodable(self) -> str | None:
        """Chunks that are cut over the sorted sequence move with every later token."""
        return super().undecodable or (
            None
            if self._exact
            else (
                "chunks of the sorted sequence move with every later token; give attention.chunks=aligned"
                if self.cut != "aligned"
                else "its buckets follow from the length of the call; give max_length, or attention.buckets"
            )
        )

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> BucketCache:
        """Keeps the last two chunks of each bucket; see `Decodes.new_cache`."""
        if self.undecodable:
            super().new_cache(batch)
        return BucketCache(
            batch, self.heads, self.head_dim, device, dtype, rounds=self.rounds, buckets=self.buckets_at(0), size=self.chunk
        )

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: BucketCache, *, lengths: Tensor | None = None) -> Tensor:
        """q [B, H, n, D], k and v [B, Hkv, n, D] -> [B, H, n, D]; see `Decodes.decode`."""
        lengths = self.check_decode(q, k, v, cache, lengths)
        exists = existing(cache.positions, q.shape[2], lengths)[1][:, None, :, None]
        q, v = (x.masked_fill(~exists, 0.0) for x in (q, v))
        with as_in_evaluation(self):
            exact = q.to(torch.promote_types(q.dtype, torch.float32))
            keys, values = of_unit_length(exact).to(q.dtype), for_all_heads(v, self.heads)
            count = self.buckets_at(0)
            found = buckets_of(exact, self.rotations(directions(count), q), count)  # (B, H, R, n)
            bucket, chunk = cache.placed(found, lengths)
            if cache.seen:
                out, alone = cache.attend(q, keys, values, bucket, chunk, scale=1.0, itself=False)
                out = torch.where(alone, values, out)
            else:
                out = self(q, q, v, lengths=lengths)
            cache.keep(keys, values, bucket, chunk, lengths)
        return out.masked_fill(~exists, 0.0)

    def cost(self, length: int) -> Cost:
        """Estimates for buckets of equal size: what rounds find depends on the content.

        Pairs found by several rounds count once at most, so live pairs are those of all rounds, or all pairs where that is
        fewer. `other_flops` is the hashing, one dot product for each token, round and direction; sorting has no FLOPs.
        """
        H, D, R = self.heads, self.head_dim, self.rounds
        count = self.buckets_at(length)
        live, visited = pairs_of_even_buckets(length, count, self.chunk_at(length), self.cut, self.causal)
        whole = length * (length + 1) // 2 if self.causal else length * length
        live, visited = H * min(R * live, whole), H * R * visited
        hashing = 2 * D * H * R * length * directions(count)
        held = self.held_tokens(length)
        if not self.undecodable:
            held = 4 * H * D * kept_of_even_buckets(length, count, self.chunk, R)
        return Cost(live, visited, 4 * D * live, 4 * D * visited, hashing, state_bytes=held)


def of_unit_length(x: Tensor) -> Tensor:
    """x [..., D] of length 1, as the authors' code has it."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + x.shape[-1] * 1e-6)


reformer = HashedAttention
