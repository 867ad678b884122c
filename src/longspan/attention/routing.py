"""`attention=routing`: tokens attend to tokens of their cluster.

Legend: B batch, H heads, Hkv key/value heads, T tokens, D head width, C clusters, w members of a cluster.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.attention.base import visited_pairs
from longspan.attention.bucket_cache import BucketCache
from longspan.attention.buckets import Chunks, kept_of_even_buckets, pairs_of_even_buckets
from longspan.attention.centroids import Centroids
from longspan.attention.content import ContentAttention, for_all_heads, with_lse, without_padding
from longspan.attention.decoding import as_in_evaluation
from longspan.attention.errors import as_fraction, as_whole, wrong_setting
from longspan.attention.key_cache import existing
from longspan.attention.place import Place
from longspan.cost import Cost
from longspan.patterns import Full
from longspan_kernels.bucketed import Buckets, bucket_tables, bucketed_attention, nearest_keys, served, tile_for

MEMBERSHIPS = ("auto", "balanced", "nearest")


class RoutedAttention(ContentAttention):
    """Routing Transformer's attention (arXiv:2003.05997): spherical k-means over queries and keys, attention in clusters.

    Queries and keys are brought to length sqrt(D) (by length alone: LayerNorm, the paper's, would take a mean away that
    rotary positions turn). Balanced, each cluster takes the `window` tokens nearest to its centroid; a token may belong to
    several clusters, whose outputs are averaged, or to none, with output 0. Nearest, each token belongs to the cluster
    whose centroid is nearest, and sees chunks of `window` of them, its own and the one before.

    Causal attention shares queries and keys, as in the paper. There the balanced choice lets later tokens decide which
    earlier ones are members, so that likelihoods are not quite those of a causal model; nearest does not.

    Args:
        clusters: C; None for the root of `max_length`.
        window: w; None for the tokens of a sequence over C, and with "nearest" for `max_length` over C.
        membership: "balanced", "nearest", or "auto" for nearest where causal and balanced both ways.
        decay: of the centroids; see `Centroids`.
        seed: layer l starts its centroids by seed + l.
        max_length: the longest sequence; None, with "nearest" and `window` None, makes chunks by the padded length of each
            call.
        heads, kv_heads, head_dim, causal, dropout, backend: see `ContentAttention`.
    """

    def __init__(
        self,
        *,
        clusters: int | None = None,
        window: int | None = None,
        membership: str = "auto",
        decay: float = 0.999,
        seed: int = 0,
        **place: Unpack[Place],
    ) -> None:
        max_length = place.get("max_length")
        super().__init__(**place)
        if clusters is None and max_length is None:
            raise wrong_setting("clusters", "= null needs a known longest sequence; give a number of clusters")
        self.clusters = (
            max(1, math.isqrt(max_length or 1)) if clusters is None else as_whole("clusters", clusters, 1, "clusters")
        )
        if max_length is not None and self.clusters > max_length:
            raise wrong_setting("clusters", f"= {clusters} is more than the {max_length} tokens; give fewer, or null")
        self.window = None if window is None else as_whole("window", window, 1, "members a cluster")
        if max_length is not None and window is not None and window > max_length:
            raise wrong_setting("window", f"= {window} is more than the {max_length} tokens; give fewer, or null")
        if membership not in MEMBERSHIPS:
            raise wrong_setting("membership", f"= {membership!r} is unknown; choose one of {', '.join(MEMBERSHIPS)}")
        self.max_length = max_length or 0
        self.balanced = membership == "balanced" or (membership == "auto" and not self.causal)
        # Tokens in the order of their nearest cluster: one order, so queries and keys are clustered as one.
        self.shares_qk = self.causal or not self.balanced
        self.centroids = Centroids(
            self.heads,
            self.clusters,
            self.head_dim,
            as_fraction("decay", decay),
            as_whole("seed", seed, 0, "a seed") + place.get("layer", 0),
        )

    @property
    def depends_on_padding(self) -> bool:
        """Whether chunks follow from the padded length; predictions then pad each sequence by its own length."""
        return not (self.balanced or self.window or self.max_length)

    def members(self, length: int) -> int:
        """w of a sequence of that length."""
        return min(length, self.window or -(-length // self.clusters))

    def members_of(self, lengths: Tensor) -> Tensor:
        """w [B] of sequences of lengths [B]."""
        return torch.minimum(lengths, lengths.new_tensor(self.window) if self.window else -(-lengths // self.clusters))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, segments: Tensor | None) -> Tensor:
        H = q.shape[1]
        if not self.balanced and served(self.backend, q, v):
            return self._by_kernels(q, for_all_heads(v, H), lengths)
        v = for_all_heads(without_padding(v, lengths), H)
        exists = None if lengths is None else torch.arange(q.shape[2], device=q.device) < lengths[:, None]  # (B, T)
        q = of_one_length(without_padding(q, lengths))
        k = q if self.shares_qk else for_all_heads(of_one_length(without_padding(k, lengths)), H)
        dots_q = self.centroids(q)
        dots_k = dots_q if self.shares_qk else self.centroids(k)
        nearest = dots_q.argmax(-1) if self.training or not self.balanced else None  # (B, H, T)
        if self.training and nearest is not None:
            self.centroids.gather(q, nearest, exists)
            if not self.shares_qk:
                self.centroids.gather(k, dots_k.argmax(-1), exists)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if not self.balanced and nearest is not None:
            return self._among_nearest(q, k, v, nearest, exists)
        return self._among_members(q, k, v, dots_q, dots_k, lengths, exists)

    def _by_kernels(self, q: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        """Among the nearest, by kernels that know chunks; they look at no padding and bring rows to one length themselves."""
        T, D = q.shape[2:]
        size = self._chunk(T)
        tile = tile_for(size, D, q.element_size())
        how = Buckets(1, size, tile, aligned=True, causal=self.causal, itself=True, unit_keys=True, unit_queries=True)
        with torch.no_grad():
            keys = nearest_keys(q, self.centroids.means, lengths)
            *tables, start = bucket_tables(keys, 1, self.clusters, size, tile, True)
            if self.training:
                self.centroids.gather_buckets(q, tables[0], start)
        # Rows of length sqrt(D), and scores over sqrt(D).
        return bucketed_attention(q, v, tables, how, scale=D**0.5, lengths=lengths, dropout_p=self.dropped)

    def _among_nearest(self, q: Tensor, k: Tensor, v: Tensor, cluster: Tensor, exists: Tensor | None) -> Tensor:
        B, H, T, D = q.shape
        if exists is not None:
            cluster = cluster.masked_fill(~exists[:, None], -1)
        chunks = Chunks.of(cluster.view(B * H, T), self.clusters, self._chunk(T), "aligned")
        folded = [x.reshape(B * H, 1, T, D) for x in (q, k, v)]
        layout = chunks.layout(folded[0], self.causal, None)
        out, _ = with_lse(folded[0], folded[1], folded[2], layout, dropout_p=self.dropped, backend=self.backend)
        return out.view(B, H, T, D)

    def _chunk(self, length: int) -> int:
        """The window, rounded up to whole tiles; of the longest sequence, so that padding does not change it."""
        return -(-self.members(max(length, self.max_length)) // 16) * 16

    def _among_members(
        self, q: Tensor, k: Tensor, v: Tensor, dots_q: Tensor, dots_k: Tensor, lengths: Tensor | None, exists: Tensor | None
    ) -> Tensor:
        (B, H, T, D), C, w = q.shape, self.clusters, self.members(q.shape[2])
        # A sequence shorter than the batch has smaller clusters.
        filled = None if lengths is None else self.members_of(lengths)
        of_q = nearest_members(dots_q, w, exists, filled)  # (B, H, C, w) tokens, T for none
        of_k = of_q if self.shares_qk else nearest_members(dots_k, w, exists, filled)
        folded = [taken(x, index).view(B * H * C, 1, w, D) for x, index in ((q, of_q), (k, of_k), (v, of_k))]
        # Members stand in their order, those that do not exist last: a triangle is causal, and a length ends them.
        filled = None if filled is None else filled.repeat_interleave(H * C)
        out, lse = with_lse(
            folded[0],
            folded[1],
            folded[2],
            Full(),
            causal=self.causal,
            lengths=filled,
            dropout_p=self.dropped,
            backend=self.backend,
        )
        place = of_q.flatten(2)  # (B, H, C w)
        saw = (lse > float("-inf")).view(B, H, C * w).to(out.dtype)
        total = out.new_zeros((B, H, T + 1, D)).scatter_add(
            2, place[..., None].expand(B, H, C * w, D), out.view(B, H, C * w, D)
        )
        times = out.new_zeros((B, H, T + 1)).scatter_add(2, place, saw)
        return (total / times.clamp(min=1)[..., None])[:, :, :T]

    # -- decoding ---------------------------------------------------------------------------------------------------

    @property
    def _exact(self) -> bool:
        return not self.balanced and not self.depends_on_padding

    @property
    def undecodable(self) -> str | None:
        """Balanced clusters choose among all tokens, later ones too."""
        return super().undecodable or (
            None
            if self._exact
            else (
                "balanced clusters let later tokens decide which earlier ones are members; give attention.membership=nearest"
                if self.balanced
                else "its chunks follow from the length of the call; give max_length, or attention.window"
            )
        )

    def new_cache(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> BucketCache:
        """Keeps the last two chunks of each cluster; see `Decodes.new_cache`."""
        if self.undecodable:
            super().new_cache(batch)
        return BucketCache(
            batch, self.heads, self.head_dim, device, dtype, rounds=1, buckets=self.clusters, size=self._chunk(0)
        )

    def decode(self, q: Tensor, k: Tensor, v: Tensor, cache: BucketCache, *, lengths: Tensor | None = None) -> Tensor:
        """q [B, H, n, D], k and v [B, Hkv, n, D] -> [B, H, n, D]; see `Decodes.decode`."""
        lengths = self.check_decode(q, k, v, cache, lengths)
        exists = existing(cache.positions, q.shape[2], lengths)[1][:, None, :, None]
        q, v = (x.masked_fill(~exists, 0.0) for x in (q, v))
        with as_in_evaluation(self):
            shared, values = of_one_length(q), for_all_heads(v, self.heads)
            nearest = self.centroids(shared).argmax(-1)[:, :, None]  # (B, H, 1, n)
            bucket, chunk = cache.placed(nearest, lengths)
            shared = shared.to(v.dtype)
            if cache.seen:
                out, _ = cache.attend(shared, shared, values, bucket, chunk, scale=self.head_dim**-0.5, itself=True)
            else:
                out = self(q, q, v, lengths=lengths)
            cache.keep(shared, values, bucket, chunk, lengths)
        return out.masked_fill(~exists, 0.0)

    def cost(self, length: int) -> Cost:
        """Balanced: live pairs are those of all clusters, at most all there are. Nearest: as if clusters were of equal size.

        `other_flops` is the dots with centroids; choosing, gathering and sorting have none.
        """
        H, D, C = self.heads, self.head_dim, self.clusters
        if length == 0:
            return Cost()
        whole = length * (length + 1) // 2 if self.causal else length * length
        if self.balanced:
            w = self.members(length)
            live = min(C * (w * (w + 1) // 2 if self.causal else w * w), whole)
            visited = visited_pairs(Full(), w, C, self.causal)
        else:
            live, visited = pairs_of_even_buckets(length, C, self._chunk(length), "aligned", self.causal)
        live, visited = H * live, H * visited
        routing = 2 * D * H * length * C * (1 if self.shares_qk else 2)
        held = self.held_tokens(length)
        if not self.undecodable:
            held = 4 * H * D * kept_of_even_buckets(length, C, self._chunk(0))
        return Cost(live, visited, 4 * D * live, 4 * D * visited, routing, state_bytes=held)


def of_one_length(x: Tensor) -> Tensor:
    """x [..., D] of length sqrt(D), in float32 at least: clusters are chosen by it."""
    return F.rms_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-1:], eps=1e-6)


def nearest_members(dots: Tensor, count: int, exists: Tensor | None, counts: Tensor | None) -> Tensor:
    """dots [B, H, T, C] -> [B, H, C, count]: the tokens nearest to each centroid, in their order, then T for none.

    `exists` [B, T] bool leaves out padding; `counts` [B] is how many of each sequence a centroid takes, at most `count`.
    """
    T = dots.shape[2]
    if exists is not None:
        dots = dots.masked_fill(~exists[:, None, :, None], float("-inf"))
    found = dots.transpose(2, 3).topk(count)
    kept = found.values > float("-inf")
    if counts is not None:
        kept = kept & (torch.arange(count, device=dots.device) < counts[:, None, None, None])
    return torch.where(kept, found.indices, T).sort(-1).values


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, H, T, D] at index [B, H, C, w] (T for a row of its last token, unused) -> [B, H, C, w, D]."""
    B, H, T, D = x.shape
    rows = index.flatten(2).clamp(max=T - 1)[..., None].expand(B, H, index.shape[2] * index.shape[3], D)
    return x.gather(2, rows).view(*index.shape, D)


routing = RoutedAttention
