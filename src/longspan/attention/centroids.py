"""Centroids of spherical k-means that follow what they see, by an exponential moving average.

Legend: B batch, H heads, T tokens, D head width, C clusters.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.config.errors import CallError
from longspan_kernels.block_sparse import is_mapped
from longspan_kernels.bucketed import add_up_buckets


class Centroids(nn.Module):
    """C directions a head, in buffers: checkpoints keep them, no optimizer moves them.

    `gather` collects what was assigned to each centroid in a forward pass; `end_step`, once a training step, moves each
    towards the mean of what it was assigned, over all devices. Forward passes that are repeated to recompute activations do
    no harm: sums and counts double alike, and centroids stay put between them.

    Args:
        heads, clusters, width: H, C, D.
        decay: weight of the old centroid; smaller at first, so that the random start is soon forgotten.
        seed: of the random start.
    """

    means: Tensor
    steps: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, heads: int, clusters: int, width: int, decay: float, seed: int) -> None:
        super().__init__()
        self.decay = decay
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("means", F.normalize(torch.randn(heads, clusters, width, generator=generator), dim=-1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # What the passes of a step have gathered, changed in place so that a replayed graph finds it.
        self.register_buffer("sums", torch.zeros(heads, clusters, width), persistent=False)
        self.register_buffer("counts", torch.zeros(heads, clusters), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Dots [B, H, T, C] of x [B, H, T, D] with each centroid, without gradients."""
        exact = torch.promote_types(x.dtype, torch.float32)
        return x.detach().to(exact) @ self.means.to(exact).transpose(-1, -2)

    @torch.no_grad()
    def gather(self, x: Tensor, nearest: Tensor, exists: Tensor | None) -> None:
        """Notes which centroid each of x [B, H, T, D] is nearest to [B, H, T]; `exists` [B, T] bool leaves out padding.

        Raises:
            CallError: torch.vmap maps over x.
        """
        if is_mapped(x):
            raise CallError(
                "torch.vmap over routing attention that trains: its centroids gather what they see, in place; put the mapped "
                "dimension into the batch, as in attention(q.flatten(0, 1), ...), or call eval() first"
            )
        H, C, D = self.means.shape
        if exists is not None:
            nearest = torch.where(exists[:, None], nearest, C)
        flat = nearest.transpose(0, 1).flatten(1)  # (H, B T)
        rows = x.detach().float().transpose(0, 1).flatten(1, 2)  # (H, B T, D)
        sums = torch.zeros((H, C + 1, D), device=x.device).scatter_add_(1, flat[..., None].expand_as(rows), rows)
        counts = torch.zeros((H, C + 1), device=x.device).scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
        self.sums += sums[:, :C].to(self.sums.dtype)
        self.counts += counts[:, :C].to(self.counts.dtype)

    @torch.no_grad()
    def gather_buckets(self, x: Tensor, order: Tensor, start: Tensor) -> None:
        """`gather` of x [B, H, T, D] brought to length sqrt(D), by its order as `bucket_tables` has it: on Triton alone."""
        add_up_buckets(x, order, start, self.sums, self.counts)

    @torch.no_grad()
    def end_step(self) -> None:
        """Moves the centroids by what was gathered since the last call; every device calls it at the same time."""
        sums, counts = self.sums, self.counts
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
        self.steps += 1
        decay = torch.clamp((self.steps - 1) / (self.steps + 9), max=self.decay)
        means = F.normalize(sums, dim=-1).to(self.means.dtype)
        moved = F.normalize(decay * self.means + (1 - decay) * means, dim=-1)
        self.means.copy_(torch.where(counts[..., None] > 0, moved, self.means))
        sums.zero_()
        counts.zero_()

    def extra_repr(self) -> str:
        heads, clusters, width = self.means.shape
        return f"heads={heads}, clusters={clusters}, width={width}, decay={self.decay}"
